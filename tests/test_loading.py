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
    gpu: str | None, warned: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "detect", lambda: Hardware(gpu, bf16=True, free=0))
    monkeypatch.setattr("yi_tune.models.CPU_LIMIT", 10)
    with pytest.raises(YiTuneError, match="does not load"):  # it only passes for a model
        loading.load_run(find(workspace, None, None))
    assert ("Yi-1.5-6B-Chat answers slowly" in capsys.readouterr().err) == warned


Loaded = list[dict[str, Any]]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """The configs that the engine is given; it has no memory for any in 16 bits."""
    configs: Loaded = []

    def load_assistant(config: dict[str, Any]) -> None:
        configs.append(config)
        if "quantization_bit" not in config:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("yi_tune.engine.assistant.load_assistant", load_assistant)
    return configs


# None: the estimate says that 16 bits fit, and loading shows that they do not.
@pytest.mark.parametrize(("free", "tried"), [(24_000_000_000, [None, 4]), (13_400_000_000, [4])])
def test_answers_in_4_bits_where_16_do_not_fit(
    free: int,
    tried: list[int | None],
    loaded: Loaded,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loading, "detect", lambda: Hardware("NVIDIA GPU", bf16=True, free=free))
    run = find(workspace, None, None)
    run.write("chat.yaml", run.chat_yaml.read_text().replace("quantization_bit: 4", "infer_dtype: bfloat16"))
    config = run_config(run)
    config["model_name_or_path"] = NAME  # whose shape is known
    loading.load(config)
    assert [config.get("quantization_bit") for config in loaded] == tried
    assert capsys.readouterr().err.count("It answers in 4.") == 1


@pytest.mark.parametrize(
    ("hardware", "asked", "used"),
    [
        (Hardware("Tesla T4", bf16=False, free=0), "bfloat16", "float16"),
        (Hardware("NVIDIA A100", bf16=True, free=0), "float16", "float16"),
        (Hardware(None, bf16=False, free=0), "bfloat16", "float32"),
        (Hardware(None, bf16=True, free=0), "float16", "bfloat16"),
        (Hardware(None, bf16=True, free=0), None, "bfloat16"),
    ],
)
def test_answers_in_a_type_that_this_machine_computes_in(
    hardware: Hardware, asked: str | None, used: str, loaded: Loaded, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "detect", lambda: hardware)
    loading.load(run_config(find(workspace, None, None)) | ({"infer_dtype": asked} if asked else {}))
    # In the bits that the run says.
    assert [(config["infer_dtype"], config["quantization_bit"]) for config in loaded] == [(used, 4)]


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
