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
from yi_tune.models import CATALOGUE, DEFAULT_MODEL, FileOrigin, Origin, find_model

NAME = "yi-1.5-6b-chat"


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
    model = make_model(CATALOGUE[NAME].path(workspace))
    run = workspace / "saves" / CATALOGUE[NAME].folder / "identity"
    run.mkdir(parents=True)
    record = {"model": NAME, "model_path": str(model), "weights": "", "identity": {}, "data": "x.jsonl", "config": {}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "report.json").write_text("{}")
    (run / "chat.yaml").write_text(
        f"model_name_or_path: {model}\nadapter_name_or_path: {run}\ntemplate: yi\nquantization_bit: 4\n"
    )
    return workspace


def test_run_is_loaded_as_its_chat_yaml_says(workspace: Path) -> None:
    assert chat_config(workspace, None, None, base=False) == {
        "model_name_or_path": str(workspace / "models" / "Yi-1.5-6B-Chat"),
        "adapter_name_or_path": str(workspace / "saves" / "Yi-1.5-6B-Chat" / "identity"),
        "template": "yi",
        "quantization_bit": 4,
    }


def test_workspace_may_be_moved(workspace: Path, tmp_path: Path) -> None:
    moved = tmp_path / "there"
    shutil.move(workspace, moved)
    config = run_config(find(moved, "identity", NAME))
    assert config["model_name_or_path"] == str(moved / "models" / "Yi-1.5-6B-Chat")
    assert config["adapter_name_or_path"] == str(moved / "saves" / "Yi-1.5-6B-Chat" / "identity")


def test_other_weights_than_the_run_was_trained_on_are_told_of(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workspace / "saves" / CATALOGUE[NAME].folder / "identity" / "run.json"
    record = json.loads(file.read_text())
    trained_on = find_model(NAME, workspace).weights_digest
    for weights, told in ((trained_on, False), ("0" * 64, True)):
        file.write_text(json.dumps(record | {"weights": weights}))
        run_config(find(workspace, None, None))
        assert ("has other weights now" in capsys.readouterr().err) == told


def test_base_of_a_run(workspace: Path) -> None:
    tuned = chat_config(workspace, "identity", None, base=False)
    assert chat_config(workspace, "identity", None, base=True, both=True) == tuned
    del tuned["adapter_name_or_path"]
    assert chat_config(workspace, "identity", None, base=True) == tuned
    assert chat_config(workspace, "identity", NAME, base=True) == tuned
    with pytest.raises(YiTuneError, match="other"):
        chat_config(workspace, "other", NAME, base=True)


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


def test_base_alone_is_that_of_the_newest_finished_run(workspace: Path) -> None:
    tuned = chat_config(workspace, None, None, base=False)
    # The default model, had there been no run, would be quantised to 4 bits at the most.
    chat_yaml = workspace / "saves" / CATALOGUE[NAME].folder / "identity" / "chat.yaml"
    chat_yaml.write_text(chat_yaml.read_text().replace("quantization_bit: 4", "quantization_bit: 8"))
    del tuned["adapter_name_or_path"]
    assert chat_config(workspace, None, None, base=True) == tuned | {"quantization_bit": 8}


@pytest.mark.parametrize(("free", "bits"), [(24_000_000_000, {}), (8_000_000_000, {"quantization_bit": 4})])
def test_base_alone_without_a_finished_run_is_the_default_model(
    free: int, bits: dict[str, int], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "detect", lambda: Hardware("NVIDIA GPU", bf16=True, free=free))
    (workspace / "saves" / CATALOGUE[NAME].folder / "identity" / "report.json").unlink()
    assert NAME == DEFAULT_MODEL
    assert chat_config(workspace, None, None, base=True) == bits | {
        "model_name_or_path": str(workspace / "models" / "Yi-1.5-6B-Chat"),
        "template": "yi",
        "finetuning_type": "lora",
        "infer_dtype": "bfloat16",
    }


def test_base_of_a_model_that_is_no_run_s(workspace: Path) -> None:
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
