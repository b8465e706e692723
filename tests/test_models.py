import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from yi_tune.errors import YiTuneError
from yi_tune.models import CATALOGUE, CPU_LIMIT, DEFAULT_MODEL, LocalModel, Model, check_model, find_model
from yi_tune.resources import DATA


def test_catalogue() -> None:
    hubs = {name: (model.huggingface, model.modelscope) for name, model in CATALOGUE.items()}
    # Mind the hyphen.
    assert hubs == {
        "yi-1.5-6b-chat": ("01-ai/Yi-1.5-6B-Chat", "01ai/Yi-1.5-6B-Chat"),
        "yi-1.5-9b-chat": ("01-ai/Yi-1.5-9B-Chat", "01ai/Yi-1.5-9B-Chat"),
        "yi-1.5-34b-chat": ("01-ai/Yi-1.5-34B-Chat", "01ai/Yi-1.5-34B-Chat"),
        "yi-1.5-9b-chat-16k": ("01-ai/Yi-1.5-9B-Chat-16K", "01ai/Yi-1.5-9B-Chat-16K"),
        "yi-1.5-34b-chat-16k": ("01-ai/Yi-1.5-34B-Chat-16K", "01ai/Yi-1.5-34B-Chat-16K"),
        "nano": (None, None),
    }
    assert DEFAULT_MODEL in CATALOGUE
    folders = [model.folder for model in CATALOGUE.values()]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("model", [model for model in CATALOGUE.values() if model.huggingface], ids=lambda m: m.name)
def test_yi_has_the_tutorials_preset(model: Model) -> None:
    assert (model.learning_rate, model.num_train_epochs) == (1e-4, 3.0)


def test_nano_has_a_learning_rate_of_its_own() -> None:
    nano = CATALOGUE["nano"]
    assert nano.learning_rate > 1e-4
    assert nano.num_train_epochs == 3


@pytest.mark.parametrize(
    "name", ["yi-1.5-9b-chat", "Yi-1.5-9B-Chat", "01-ai/Yi-1.5-9B-Chat", "01ai/Yi-1.5-9B-Chat", "01-AI/YI-1.5-9b-chat"]
)
def test_find_by_name_and_by_hub_id(name: str, tmp_path: Path) -> None:
    local = find_model(name, tmp_path)
    assert local.model is CATALOGUE["yi-1.5-9b-chat"]
    assert local.path == tmp_path / "models" / "Yi-1.5-9B-Chat"
    assert not local.downloaded


def test_nano_is_shipped_whatever_the_workspace(tmp_path: Path) -> None:
    assert find_model("nano", tmp_path) == LocalModel(CATALOGUE["nano"], DATA / "nano")


def test_find_by_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "mine"
    folder.mkdir(parents=True)
    for name in (str(folder), "my models/mine", "./my models/mine", "my models/../my models/mine/"):
        local = find_model(name, tmp_path / "workspace")
        assert local.path == folder.resolve()
        assert (local.model.name, local.model.folder) == (str(folder.resolve()), "mine")
        assert local.model.huggingface is None
        assert local.downloaded


def test_find_another_model_of_a_hub(tmp_path: Path) -> None:
    local = find_model("someone/Yi-Tuned", tmp_path)
    assert (local.model.huggingface, local.model.modelscope) == ("someone/Yi-Tuned", "someone/Yi-Tuned")
    assert local.path == tmp_path / "models" / "Yi-Tuned"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("yi-1.5-6b", "Did you mean yi-1.5-6b-chat?"),
        ("Nanno", "Did you mean nano?"),
        ("llama", "Known: yi-1.5-6b-chat, "),
        ("./nothing", "Known: "),
        ("/no/such/folder", ""),
        ("~/nothing", ""),
        ("", "Known: "),
        ("a/b/c", ""),
        ("x/..", ""),
        ("x/.", ""),
        ("../x", ""),
        ("x/.hidden", ""),
        ("x/-y", ""),
        ("x/y\n", ""),
        ("x/y z", ""),
        ("x/", ""),
    ],
)
def test_unknown_model(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="Unknown model") as caught:
        find_model(name, tmp_path)
    assert caught.value.hint.startswith(hint)
    assert "folder" in caught.value.hint


@pytest.fixture
def local(tmp_path: Path) -> LocalModel:
    """A folder with all that is looked at, weights in two shards."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        tensors = {f"layer.{number}": np.full((64, 64), number, np.float32)}
        save_file(tensors, folder / f"model-{number}.safetensors")
    index = {"weight_map": {"layer.1": "model-1.safetensors", "layer.2": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return LocalModel(Model("mine", "mine"), folder)


def refused(local: LocalModel) -> str:
    """What check_model says, and its hint."""
    with pytest.raises(YiTuneError) as caught:
        check_model(local)
    assert caught.value.hint
    return f"{caught.value.message} {caught.value.hint}"


def test_whole_model(local: LocalModel) -> None:
    check_model(local)
    (local.path / "tokenizer.json").rename(local.path / "tokenizer.model")
    check_model(local)
    (local.path / "model.safetensors.index.json").unlink()
    (local.path / "model-1.safetensors").rename(local.path / "model.safetensors")
    check_model(local)


def test_not_downloaded(tmp_path: Path) -> None:
    said = refused(find_model("yi-1.5-6b-chat", tmp_path))
    assert "yi-1.5-6b-chat is not downloaded" in said
    assert str(tmp_path / "models" / "Yi-1.5-6B-Chat") in said
    assert "yi-tune download yi-1.5-6b-chat" in said


def test_folder_that_is_no_model(local: LocalModel) -> None:
    (local.path / "config.json").unlink()
    assert "is no model: it has no config.json" in refused(local)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '"llama"'])
def test_broken_config(local: LocalModel, text: str) -> None:
    (local.path / "config.json").write_text(text)
    assert "config.json is broken. " in refused(local)


def test_config_that_is_not_text(local: LocalModel) -> None:
    (local.path / "config.json").write_bytes(b"\xff\x00")
    assert "config.json is broken. " in refused(local)


def test_other_architecture(local: LocalModel) -> None:
    (local.path / "config.json").write_text('{"model_type": "qwen2"}')
    said = refused(local)
    assert "'qwen2'" in said
    assert "'llama'" in said


def test_no_tokenizer(local: LocalModel) -> None:
    (local.path / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(local)


def test_missing_shard(local: LocalModel) -> None:
    (local.path / "model-2.safetensors").unlink()
    said = refused(local)
    assert "model-2.safetensors is missing" in said
    assert "anew from where it came from" in said


def test_missing_weights(local: LocalModel) -> None:
    for file in local.path.glob("model*"):
        file.unlink()
    assert "model.safetensors is missing" in refused(local)


@pytest.mark.parametrize("kept", [0, 5, 60, 10_000])
def test_truncated_shard(local: LocalModel, kept: int) -> None:
    shard = local.path / "model-2.safetensors"
    assert shard.stat().st_size > kept
    shard.write_bytes(shard.read_bytes()[:kept])
    said = refused(local)
    assert "model-2.safetensors are broken or cut short" in said
    assert "Delete that file" in said


def test_shard_that_is_something_else(local: LocalModel) -> None:
    (local.path / "model-1.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "model-1.safetensors are broken" in refused(local)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", "null", "3", '"x"', '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": "x"}'],
)
def test_broken_index(local: LocalModel, text: str) -> None:
    (local.path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json is broken" in refused(local)


@pytest.mark.parametrize("shard", [3, None, True, ["x"], {"x": 1}, "", ".", "none.safetensors", "\0"])
def test_index_of_what_is_no_file(local: LocalModel, shard: Any) -> None:
    index = {"weight_map": {"layer.1": "model-1.safetensors", "layer.2": shard}}
    (local.path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "The weights are not whole" in refused(local)


def test_index_of_nothing(local: LocalModel) -> None:
    (local.path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "model.safetensors.index.json" in refused(local)


def test_index_that_is_not_text(local: LocalModel) -> None:
    (local.path / "model.safetensors.index.json").write_bytes(b"\xff\x00")
    assert "model.safetensors.index.json is broken" in refused(local)


def test_big_models_need_a_gpu(local: LocalModel, tmp_path: Path) -> None:
    assert local.weight_bytes == sum(file.stat().st_size for file in local.path.glob("*.safetensors")) > 2 * 64 * 64 * 4
    assert not local.needs_gpu
    with (local.path / "model-3.safetensors").open("wb") as file:
        file.truncate(CPU_LIMIT)  # a sparse file: no disk is used
    assert local.needs_gpu


def test_models_that_are_not_here_need_a_gpu(tmp_path: Path) -> None:
    assert find_model("yi-1.5-6b-chat", tmp_path).needs_gpu
    assert find_model("yi-1.5-6b-chat", tmp_path).weight_bytes == 0
