import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from yi_tune import loading
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.loading import chat_config, find, run_config
from yi_tune.models import CATALOGUE, FileOrigin, Origin, find_model

NAME = "yi-1.5-6b-chat"
RUN = Path("saves") / CATALOGUE[NAME].folder / "identity"


def make_model(folder: Path) -> Path:
    """A folder that passes for a downloaded model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    weights = folder / "model.safetensors"
    save_file({"x": np.zeros(4, np.float32)}, weights)
    files = {weights.name: FileOrigin(weights.stat().st_size, "a" * 64)}
    Origin("huggingface", f"01-ai/{folder.name}", None, None, files).write(folder)
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with Yi-1.5-6B-Chat and a finished run of it."""
    workspace = tmp_path / "here"
    model, run = make_model(CATALOGUE[NAME].path(workspace)), workspace / RUN
    run.mkdir(parents=True)
    record = {"model": NAME, "model_path": str(model), "weights": "", "identity": {}, "data": "x.jsonl", "config": {}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "report.json").write_text("{}")
    (run / "chat.yaml").write_text(
        f"model_name_or_path: {model}\nadapter_name_or_path: {run}\ntemplate: yi\nquantization_bit: 4\n"
    )
    return workspace


def expected(workspace: Path, **more: Any) -> dict[str, Any]:
    """The config that loads the base of the run there."""
    return {"model_name_or_path": str(workspace / "models" / "Yi-1.5-6B-Chat"), "template": "yi", **more}


def test_run_is_loaded_as_its_chat_yaml_says_wherever_it_lies(workspace: Path, tmp_path: Path) -> None:
    for place in (workspace, tmp_path / "there"):
        if place != workspace:
            shutil.move(workspace, place)
        base = expected(place, quantization_bit=4)
        tuned = base | {"adapter_name_or_path": str(place / RUN)}
        assert chat_config(place, None, None, base=False) == tuned
        assert run_config(find(place, "identity", NAME)) == tuned
        for run, model in (("identity", None), ("identity", NAME), (None, None)):
            assert chat_config(place, run, model, base=True) == base
        assert chat_config(place, "identity", None, base=True, both=True) == tuned
    with pytest.raises(YiTuneError, match="other"):
        chat_config(place, "other", NAME, base=True)


def test_other_weights_than_the_run_was_trained_on_are_told_of(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workspace / RUN / "run.json"
    record = json.loads(file.read_text())
    trained_on = find_model(NAME, workspace).weights_digest
    for weights, told in ((trained_on, False), ("0" * 64, True)):
        file.write_text(json.dumps(record | {"weights": weights}))
        run_config(find(workspace, None, None))
        assert ("has other weights now" in capsys.readouterr().err) == told


@pytest.mark.parametrize(("gpu", "warned"), [(None, True), ("NVIDIA H200", False)])
def test_large_model_without_a_gpu_is_warned_of(
    gpu: str | None,
    warned: bool,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loading, "detect", lambda: Hardware(gpu, bf16=True, free=0))
    monkeypatch.setattr("yi_tune.models.CPU_LIMIT", 10)
    config = chat_config(workspace, None, None, base=False)
    with pytest.raises(YiTuneError, match="does not load"):  # it only passes for a model
        loading.load(config)
    assert ("Yi-1.5-6B-Chat answers slowly" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(("bits", "told"), [("", True), ("quantization_bit: 4", False)])
def test_run_that_memory_does_not_hold_may_be_quantised(
    bits: str, told: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_assistant(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("yi_tune.engine.assistant.load_assistant", load_assistant)
    run = find(workspace, None, None)
    run.write("chat.yaml", run.chat_yaml.read_text().replace("quantization_bit: 4", bits))
    with pytest.raises(YiTuneError, match="out of memory") as caught:
        loading.load_run(run)
    assert (f"Add a line 'quantization_bit: 4' to {run.chat_yaml}" in caught.value.hint) == told


@pytest.mark.parametrize(("free", "bits"), [(24_000_000_000, {}), (8_000_000_000, {"quantization_bit": 4})])
def test_base_alone_without_a_finished_run_is_the_default_model(
    free: int, bits: dict[str, int], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "detect", lambda: Hardware("NVIDIA GPU", bf16=True, free=free))
    (workspace / RUN / "report.json").unlink()
    found = chat_config(workspace, None, None, base=True)
    assert found == expected(workspace, finetuning_type="lora", infer_dtype="bfloat16", **bits)
    # Or the one that is named, of which there is no run.
    other = CATALOGUE["yi-1.5-9b-chat"]
    with pytest.raises(YiTuneError, match=r"yi-1\.5-9b-chat is not downloaded"):
        chat_config(workspace, None, other.name, base=True)
    make_model(other.path(workspace))
    config = chat_config(workspace, None, other.name, base=True)
    assert config["model_name_or_path"] == str(other.path(workspace))
    assert "adapter_name_or_path" not in config


def test_base_that_is_gone(workspace: Path) -> None:
    shutil.rmtree(workspace / "models")
    for base in (False, True):
        with pytest.raises(YiTuneError, match="is not downloaded") as caught:
            chat_config(workspace, "identity", None, base=base)
        assert f"yi-tune download {NAME}" in caught.value.hint
