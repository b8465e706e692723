import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from yi_tune.cli import app
from yi_tune.errors import YiTuneError
from yi_tune.files import DATA
from yi_tune.hubs import download
from yi_tune.models import (
    CATALOGUE,
    CPU_LIMIT,
    DEFAULT_MODEL,
    INDEX,
    RECORD,
    LocalModel,
    Model,
    Origin,
    Shape,
    find_model,
    read_origin,
)
from yi_tune.weights import check_model


def test_catalogue() -> None:
    sizes = ("6b-chat", "9b-chat", "34b-chat", "9b-chat-16k", "34b-chat-16k")
    assert list(CATALOGUE) == [*(f"yi-1.5-{size}" for size in sizes), "nano"]
    for model in list(CATALOGUE.values())[:-1]:
        # Mind the hyphen.
        assert (model.huggingface, model.modelscope) == (f"01-ai/{model.folder}", f"01ai/{model.folder}")
        assert model.folder.lower() == model.name
    assert DEFAULT_MODEL in CATALOGUE


def test_sizes() -> None:
    # Counted from the models' config.json.
    for name, parameters in (("yi-1.5-6b-chat", 6.061), ("yi-1.5-9b-chat", 8.829), ("yi-1.5-34b-chat-16k", 34.389)):
        shape = CATALOGUE[name].shape
        assert shape
        assert round(shape.parameters / 1e9, 3) == parameters
    # One layer, 64 wide: 4 x 64 x 64 + 3 x 64 x 128 linear parameters; three norms; embeddings and head 2 x 100 x 64.
    shape = Shape(hidden=64, layers=1, heads=1, kv_heads=1, ffn=128, vocab=100)
    assert shape.parameters == 4 * 64 * 64 + 3 * 64 * 128 + 3 * 64 + 2 * 100 * 64
    nano = find_model("nano", Path())
    assert nano.shape
    assert 0.95 < nano.shape.weight_bytes / nano.weight_bytes <= 1


@pytest.mark.parametrize("name", ["yi-1.5-9b-chat", "01ai/Yi-1.5-9B-Chat", "01-AI/YI-1.5-9b-chat"])
def test_find_by_name_and_by_hub_id(name: str, tmp_path: Path) -> None:
    local = find_model(name, tmp_path)
    assert local == LocalModel(CATALOGUE["yi-1.5-9b-chat"], tmp_path / "models" / "Yi-1.5-9B-Chat")
    assert not local.downloaded


def test_find_nano_a_folder_or_another_model_of_a_hub(tmp_path: Path) -> None:
    assert find_model("nano", tmp_path) == LocalModel(CATALOGUE["nano"], DATA / "nano")
    folder = tmp_path / "my models" / "mine"
    folder.mkdir(parents=True)
    for name in (str(folder), "./my models/mine", "my models/../my models/mine/"):
        local = find_model(name, tmp_path / "workspace")
        assert local == LocalModel(Model(str(folder.resolve()), "mine"), folder.resolve())
        assert local.downloaded
    other = Model("someone/Yi-Tuned", "Yi-Tuned", "someone/Yi-Tuned", "someone/Yi-Tuned")
    assert find_model("someone/Yi-Tuned", tmp_path) == LocalModel(other, tmp_path / "models" / "Yi-Tuned")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("yi-1.5-6b", "Did you mean yi-1.5-6b-chat?"),
        ("llama", "Known: yi-1.5-6b-chat, "),
        *((name, "") for name in ("", "/no/such/folder", "a/b/c", "x/..", "../x", "x/.hidden", "x/-y", "x/y\n")),
    ],
)
def test_unknown_model(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="Unknown model") as caught:
        find_model(name, tmp_path)
    assert caught.value.hint.startswith(hint)
    assert "folder" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 1}', '{"files": {}, "source": "x", "no": 1}'])
def test_broken_record_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    assert read_origin(tmp_path) is None


@pytest.fixture
def local(tmp_path: Path) -> LocalModel:
    """A folder with all that is looked at, weights in two shards."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        save_file({f"layer.{number}": np.zeros((64, 64), np.float32)}, folder / f"model-{number}.safetensors")
    index = {"weight_map": {"layer.1": "model-1.safetensors", "layer.2": "model-2.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    return LocalModel(Model("mine", "mine"), folder)


def test_whole_model(local: LocalModel) -> None:
    check_model(local)
    (local.path / "tokenizer.json").rename(local.path / "tokenizer.model")
    (local.path / INDEX).unlink()
    (local.path / "model-1.safetensors").rename(local.path / "model.safetensors")
    check_model(local)


def test_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="is not downloaded") as caught:
        check_model(find_model("yi-1.5-6b-chat", tmp_path / "x y"))
    assert caught.value.hint == f"Fetch it: yi-tune download yi-1.5-6b-chat --workspace '{tmp_path}/x y'"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        *(("config.json", content, "is no model: its config.json") for content in (None, b"{", b"[]", b"\xff\x00")),
        ("config.json", b'{"model_type": "qwen2"}', "'qwen2' model; Yi-1.5 models are of type 'llama'"),
        ("tokenizer.json", None, "has no tokenizer"),
        ("model-2.safetensors", None, "model-2.safetensors is missing"),
        ("model-1.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "model-1.safetensors is missing, bro"),
        (INDEX, None, "model.safetensors is missing"),
        *((INDEX, content, f"{INDEX} is missing, broken") for content in (b"{", b"[]", b"{}", b"\xff\x00")),
        (INDEX, b'{"weight_map": null}', f"{INDEX} is missing, broken"),
        (INDEX, b'{"weight_map": {"layer.1": 3}}', "The weights are not whole"),
        (INDEX, b'{"weight_map": {"layer.1": "none.safetensors"}}', "none.safetensors is missing"),
        *(
            ("model-2.safetensors", kept, "model-2.safetensors is missing, broken or cut")
            for kept in (0, 5, 60, 10_000)
        ),
    ],
)
def test_not_whole(local: LocalModel, file: str, content: bytes | int | None, said: str) -> None:
    """A file with other content, cut short to so many bytes, or gone."""
    whole = (local.path / file).read_bytes()
    (local.path / file).unlink()
    if content is not None:
        (local.path / file).write_bytes(content if isinstance(content, bytes) else whole[:content])
    with pytest.raises(YiTuneError, match=said) as caught:
        check_model(local)
    assert caught.value.hint


def test_big_models_and_those_that_are_not_here_need_a_gpu(local: LocalModel, tmp_path: Path) -> None:
    assert not local.needs_gpu
    with (local.path / "model-3.safetensors").open("wb") as file:
        file.truncate(CPU_LIMIT)  # a sparse file: no disk is used
    assert local.needs_gpu
    assert find_model("yi-1.5-6b-chat", tmp_path).needs_gpu


def listed(workspace: Path, monkeypatch: pytest.MonkeyPatch, copy: tuple[Path, Origin] | None = None) -> dict[str, Any]:
    """The list of `yi-tune models` by name, with that copy of the largest model in a cache."""
    monkeypatch.setattr(download, "cached", lambda model: copy if model.name == "yi-1.5-34b-chat" else None)
    done = CliRunner().invoke(app, ["models", "--json", "--workspace", str(workspace)])
    return {model["name"]: model for model in json.loads(done.stdout)}


def test_catalogue_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "cache", Origin("Hugging Face's cache", "01-ai/Yi-1.5-34B-Chat", None, "d" * 40)
    found = listed(tmp_path, monkeypatch, copy)
    assert list(found) == list(CATALOGUE)
    yi = found["yi-1.5-6b-chat"]
    assert (yi["parameters"], yi["weight_bytes"]) == (6_061_035_520, 2 * 6_061_035_520)
    assert yi["weight_bytes"] / 4 < yi["qlora_bytes_estimated"] < yi["weight_bytes"]
    assert (yi["path"], yi["source"], yi["commit"]) == (None, None, None)
    assert (found["nano"]["path"], found["nano"]["source"]) == (str(DATA / "nano"), "shipped with yi-tune")
    large = found["yi-1.5-34b-chat"]
    assert (large["path"], large["source"], large["commit"]) == (str(copy[0]), copy[1].source, "d" * 40)


def test_downloads_are_listed_with_their_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, other = CATALOGUE["yi-1.5-9b-chat"].path(tmp_path), tmp_path / "models" / "Tuned"
    for folder, repository in ((known, "01-ai/Yi-1.5-9B-Chat"), (other, "someone/Tuned")):
        folder.mkdir(parents=True)
        shutil.copy(DATA / "nano" / "config.json", folder)
        Origin("huggingface", repository, None, "c" * 40).write(folder)
    (tmp_path / "models" / "own folder").mkdir()
    found = listed(tmp_path, monkeypatch)
    assert list(found) == [*CATALOGUE, "someone/Tuned"]
    assert (found["yi-1.5-9b-chat"]["path"], found["yi-1.5-9b-chat"]["commit"]) == (str(known), "c" * 40)
    assert (found["someone/Tuned"]["path"], found["someone/Tuned"]["source"]) == (str(other), "huggingface")
    assert found["someone/Tuned"]["parameters"] == found["nano"]["parameters"]
    (other / "config.json").write_text("{}")
    assert listed(tmp_path, monkeypatch)["someone/Tuned"]["parameters"] is None


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "cached", lambda model: None)
    lines = CliRunner().invoke(app, ["models", "--workspace", str(tmp_path)]).stdout.splitlines()
    assert lines[1].split()[:5] == ["yi-1.5-6b-chat", "6.061", "B", "12.1", "GB"]
    assert lines[1].endswith("  no")
    assert len(lines) == 1 + len(CATALOGUE) + 2
    assert "estimate, not measured" in lines[-1]
