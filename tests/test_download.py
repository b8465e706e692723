"""The parts of a download that need no hub; tests/e2e/test_download*.py have the hubs."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save

from yi_tune.errors import YiTuneError
from yi_tune.hubs import HubError, hubs_of
from yi_tune.hubs import download as module
from yi_tune.hubs.download import download, use_cached
from yi_tune.hubs.fetch import Fetcher
from yi_tune.models import RECORD, FileOrigin, LocalModel, Model, Origin, read_origin

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": save({"x": np.zeros(4, np.float32)}),
}


class FakeHub:
    """Gives FILES, or fails with `error`."""

    def __init__(self, name: str, files: dict[str, bytes] | None = None, error: Exception | None = None) -> None:
        self.name, self.title, self.wanted = name, name.title(), f"{name}/model"
        self.files = FILES if files is None else files
        self.error = error
        self.fetched: list[str] = []
        self.origin = Origin(name, self.wanted, None, None)

    def cached(self) -> list[Path]:
        return []

    def listing(self) -> Origin:
        if self.error:
            raise self.error
        files = {name: FileOrigin(len(text), digest(text)) for name, text in self.files.items()}
        return replace(self.origin, commit="c" * 40, files=files)


def receive(fetcher: Fetcher, name: str, size: int, part: Path) -> None:
    hub: Any = fetcher._hub
    hub.fetched.append(name)
    part.write_bytes(hub.files[name])


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@pytest.fixture
def local(tmp_path: Path) -> LocalModel:
    return LocalModel(Model("it", "It", "huggingface/model", "modelscope/model"), tmp_path / "models" / "It")


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> list[FakeHub]:
    """The hubs that a download asks, in this order; to be changed by the test."""
    hubs = [FakeHub("huggingface"), FakeHub("modelscope")]
    monkeypatch.setattr(module, "hubs_of", lambda *_: hubs)
    monkeypatch.setattr(Fetcher, "_receive", receive)
    return hubs


def test_all_reasons_and_remedies_when_nobody_gives_it(local: LocalModel, hubs: list[FakeHub]) -> None:
    hubs[0].error = HubError("it is down.", "Wait.")
    hubs[1].error = HubError("it is gated.", "Log in.")
    with pytest.raises(YiTuneError) as caught:
        download(local, "auto", Console())
    assert caught.value.message == "it could not be downloaded. Huggingface: it is down. Modelscope: it is gated."
    assert caught.value.hint == "Wait.\nLog in."
    assert not local.path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"files": 1}', '{"files": {}, "source": "x", "no": 1}'])
def test_broken_record_is_none(text: str, local: LocalModel, hubs: list[FakeHub]) -> None:
    download(local, "auto", Console())
    (local.path / RECORD).write_text(text)
    assert read_origin(local.path) is None
    assert not local.downloaded


def test_disk_too_small(local: LocalModel, hubs: list[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    usage, part = shutil.disk_usage("/"), local.path.with_name("It.part")
    rest = len(FILES["config.json"] + FILES["tokenizer.json"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=rest))
    with pytest.raises(YiTuneError, match=f"{rest} bytes free") as caught:
        download(local, "auto", Console())
    assert "--workspace" in caught.value.hint
    assert hubs[0].fetched == []
    # What is there counts.
    (part / "model.safetensors").write_bytes(FILES["model.safetensors"])
    download(local, "auto", Console())
    assert "model.safetensors" not in hubs[0].fetched


def test_goes_on_with_what_is_right_only(local: LocalModel, hubs: list[FakeHub]) -> None:
    part = local.path.with_name("It.part")
    part.mkdir(parents=True)
    (part / "tokenizer.json").write_bytes(b"[]")
    (part / "model.safetensors").write_bytes(FILES["model.safetensors"])
    (part / "model-00001-of-00002.safetensors.incomplete").write_bytes(b"left over")
    download(local, "auto", Console())
    assert sorted(hubs[0].fetched) == ["config.json", "tokenizer.json"]
    assert {path.name for path in local.path.iterdir()} == {*FILES, RECORD}


def test_lost_or_wrong_file_alone_is_fetched_again(local: LocalModel, hubs: list[FakeHub]) -> None:
    download(local, "auto", Console())
    (local.path / "tokenizer.json").write_bytes(b"[]")
    for hub in hubs:
        hub.error = HubError("it is down.")
    with pytest.raises(YiTuneError, match="it is down"):
        download(local, "auto", Console(), verify=True)
    # It is no model while nobody mends it.
    assert not local.downloaded
    hubs[0].error = None
    hubs[0].fetched.clear()
    download(local, "auto", Console())
    assert hubs[0].fetched == ["tokenizer.json"]
    assert local.downloaded


def test_folder_of_the_users_own_is_not_touched(local: LocalModel, hubs: list[FakeHub]) -> None:
    local.path.mkdir(parents=True)
    (local.path / "config.json").write_text("mine")
    with pytest.raises(YiTuneError, match="no download of it") as caught:
        download(local, "auto", Console())
    assert f"--model {local.path}" in caught.value.hint
    assert (local.path / "config.json").read_text() == "mine"
    assert not local.downloaded


def test_two_repositories_of_the_same_name(local: LocalModel, hubs: list[FakeHub]) -> None:
    download(local, "auto", Console())
    other = LocalModel(Model("other/It", "It", "other/It", "other/It"), local.path)
    assert not other.downloaded
    with pytest.raises(YiTuneError, match="no download of other/It"):
        download(other, "auto", Console())


def test_nano_and_a_folder_are_only_looked_at(tmp_path: Path, hubs: list[FakeHub]) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text)
    mine = LocalModel(Model("mine", "mine"), tmp_path)
    download(mine, "auto", Console(), verify=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(YiTuneError, match="missing"):
        download(mine, "auto", Console())


def test_cached_copy_is_linked_to(
    local: LocalModel, hubs: list[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "cache" / ("d" * 40)
    copy.mkdir(parents=True)
    for name, text in (FILES | {"README.md": b"text"}).items():
        (copy / name).write_bytes(text)
    monkeypatch.setattr(hubs[1], "cached", lambda: [copy])
    use_cached(local, Console())
    assert local.downloaded
    assert {path.name for path in local.path.iterdir() if path.is_symlink()} == set(FILES)
    origin = read_origin(local.path)
    assert origin is not None
    assert (origin.source, origin.commit) == ("Modelscope's cache", "d" * 40)
    # What was in the cache is gone: it is no model any more, and comes from a hub.
    shutil.rmtree(copy)
    assert not local.downloaded
    download(local, "auto", Console())
    assert local.downloaded
    assert sorted(hubs[0].fetched) == sorted(FILES)


@pytest.mark.parametrize(
    ("variables", "order"),
    [
        ({}, ["huggingface", "modelscope"]),
        ({"HF_ENDPOINT": "https://a.mirror"}, ["huggingface", "modelscope"]),
        ({"MODELSCOPE_DOMAIN": "a.site"}, ["modelscope", "huggingface"]),
        ({"MODELSCOPE_ENDPOINT": "https://a.site"}, ["modelscope", "huggingface"]),
        ({"MODELSCOPE_ENDPOINT": "https://a.site", "HF_ENDPOINT": "https://a.mirror"}, ["huggingface", "modelscope"]),
    ],
)
def test_order_of_the_hubs(variables: dict[str, str], order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN", "MODELSCOPE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    hubs = hubs_of(Model("x", "x", "01-ai/x", "01ai/x"), None)
    assert [hub.name for hub in hubs] == order
    assert {hub.name: hub.wanted for hub in hubs} == {"huggingface": "01-ai/x", "modelscope": "01ai/x"}


def test_cached_copy_without_checksums_is_verified_with_the_hubs(
    local: LocalModel, hubs: list[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "cache"
    copy.mkdir()
    for name, text in FILES.items():
        (copy / name).write_bytes(text)
    monkeypatch.setattr(hubs[1], "cached", lambda: [copy])
    use_cached(local, Console())
    origin = read_origin(local.path)
    assert origin is not None
    assert origin.files["model.safetensors"].sha256 is None
    # Nobody to ask: it stays.
    for hub in hubs:
        hub.error = HubError("it is down.")
    with pytest.raises(YiTuneError, match="it is down"):
        download(local, "auto", Console(), verify=True)
    assert local.downloaded
    # The hub tells what the weights ought to be, which is kept.
    for hub in hubs:
        hub.error = None
    download(local, "auto", Console(), verify=True)
    assert [hub.fetched for hub in hubs] == [[], []]
    assert (local.path / "model.safetensors").is_symlink()
    origin = read_origin(local.path)
    assert origin is not None
    assert origin.files["model.safetensors"].sha256 == digest(FILES["model.safetensors"])
    # A damaged copy is not used any more, nor is it touched.
    damaged = FILES["model.safetensors"][:-1] + b"x"
    (copy / "model.safetensors").write_bytes(damaged)
    download(local, "auto", Console(), verify=True)
    assert "model.safetensors" in hubs[0].fetched
    assert (local.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not (local.path / "model.safetensors").is_symlink()
    assert (copy / "model.safetensors").read_bytes() == damaged
