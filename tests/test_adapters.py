import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.plans import record
from yi_tune.data.identity import Identity
from yi_tune.errors import YiTuneError
from yi_tune.models import LocalModel, Model, find_model, sha256
from yi_tune.plan.plan import plan
from yi_tune.runs import Run, Start, differences, find_start, train_run

ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1, "use_rslora": True, "use_dora": False, "peft_type": "LORA"}


@pytest.fixture
def nano(tmp_path: Path) -> LocalModel:
    """A model whose weights can be told from others."""
    folder = tmp_path / "nano"
    folder.mkdir()
    save_file({"x": np.zeros(4, np.float32)}, folder / "model.safetensors")
    return LocalModel(Model("nano", "nano"), folder)


def finish(workspace: Path, name: str, local: LocalModel, **config: Any) -> Run:
    """A finished run."""
    run = train_run(workspace, local, name)
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps(record({"finetuning_type": "lora"} | config, local, {}, {})))
    (run.folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    save_file({"lora": np.zeros(4, np.float32)}, run.folder / "adapter_model.safetensors")
    (run.folder / "report.json").write_text("{}")
    return run


def start_from(workspace: Path, name: str, local: LocalModel, run: str = "second") -> Start:
    return find_start(workspace, name, local, train_run(workspace, local, run))


def test_start_is_the_adapter_of_a_finished_run(tmp_path: Path, nano: LocalModel) -> None:
    run = finish(tmp_path, "first", nano, lora_target="q_proj,v_proj", lora_rank=4)
    start = start_from(tmp_path, "first", nano)
    assert start.folder == run.folder
    # The adapter knows best: its run's config may have said something else, or nothing.
    rest = {"lora_rank": 16, "lora_target": "q_proj,v_proj", "additional_target": None}
    assert start.shape == {key: ADAPTER[key] for key in ADAPTER.keys() - {"r", "peft_type"}} | rest
    assert start.adapter == sha256(run.folder / "adapter_model.safetensors")
    # The same weights elsewhere are the same.
    moved = LocalModel(Model("/elsewhere/nano", "nano"), nano.path)
    assert start_from(tmp_path, "first", moved) == start


def test_memory_is_estimated_for_the_adapter_that_is_started_from(tmp_path: Path) -> None:
    finish(tmp_path, "first", find_model("nano", tmp_path), lora_rank=8)
    planned = plan(Identity("N", "A"), model="nano", run="second", from_run="first", workspace=tmp_path)
    rank_8 = plan(Identity("N", "A"), model="nano", run="third", workspace=tmp_path)
    assert planned.fit.parts
    assert rank_8.fit.parts
    assert planned.fit.parts["adapter"] == 2 * rank_8.fit.parts["adapter"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "no run called 'none'"),
        ("", "A run cannot be called"),
        ("unfinished", "is not finished"),
        ("second", "cannot start from itself"),
    ],
)
def test_run_that_is_no_start(tmp_path: Path, nano: LocalModel, name: str, said: str) -> None:
    finish(tmp_path, "second", nano)
    (finish(tmp_path, "unfinished", nano).folder / "report.json").unlink()
    with pytest.raises(YiTuneError, match=said) as caught:
        start_from(tmp_path, name, nano)
    assert name != "second" or "--run" in caught.value.hint


def test_run_of_other_weights(tmp_path: Path, nano: LocalModel) -> None:
    finish(tmp_path, "first", nano)
    other = LocalModel(Model("yi-1.5-6b-chat", "Yi-1.5-6B-Chat"), tmp_path)
    with pytest.raises(YiTuneError, match="was trained on other weights, nano, than those in") as caught:
        start_from(tmp_path, "first", other)
    assert "--model nano" in caught.value.hint
    save_file({"x": np.ones(4, np.float32)}, nano.path / "model.safetensors")
    with pytest.raises(YiTuneError, match="other weights, nano"):
        start_from(tmp_path, "first", nano)


def test_weights_that_nobody_has_hashed_are_told_by_their_name(tmp_path: Path, nano: LocalModel) -> None:
    run = finish(tmp_path, "first", nano)
    content = json.loads((run.folder / "run.json").read_text()) | {"weights": ""}
    (run.folder / "run.json").write_text(json.dumps(content))
    assert start_from(tmp_path, "first", nano).run == "first"
    (run.folder / "run.json").write_text(json.dumps(content | {"model": "/other/nano"}))
    with pytest.raises(YiTuneError, match="other weights"):
        start_from(tmp_path, "first", nano)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", b"cut short"),
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b'{"r": 8}'),
    ],
)
def test_broken_adapter(tmp_path: Path, nano: LocalModel, file: str, content: bytes | None) -> None:
    run = finish(tmp_path, "first", nano)
    (run.folder / file).unlink()
    if content is not None:
        (run.folder / file).write_bytes(content)
    with pytest.raises(YiTuneError, match="missing or broken") as caught:
        start_from(tmp_path, "first", nano)
    assert "--fresh" in caught.value.hint


def test_resume_notices_another_start(tmp_path: Path, nano: LocalModel) -> None:
    run = finish(tmp_path, "first", nano)
    file = run.folder / "adapter_model.safetensors"
    alone = record({}, nano, {}, {})
    before = record({}, nano, {}, {}, from_run={"run": "first", "adapter": sha256(file)})
    save_file({"lora": np.ones(4, np.float32)}, file)
    after = record({}, nano, {}, {}, from_run={"run": "first", "adapter": sha256(file)})
    assert differences(before, json.loads(json.dumps(before))) == []
    for one, other in ((before, after), (before, alone), (alone, after)):
        (said,) = differences(one, other)
        assert said.startswith("from_run: ")
