import hashlib
from pathlib import Path

import pytest

from yi_tune.hubs.origin import wrong_files
from yi_tune.models import RECORD, FileOrigin, Origin, read_origin, sha256, whole


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    """The record, written, of two files in `tmp_path`."""
    contents = {"config.json": b"{}", "model.safetensors": b"weights"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = {name: FileOrigin(len(text), hashlib.sha256(text).hexdigest()) for name, text in contents.items()}
    origin = Origin("huggingface", "01-ai/Yi-1.5-6B-Chat", None, "0" * 40, files)
    origin.write(tmp_path)
    return origin


def test_record_is_read_as_it_was_written(origin: Origin, tmp_path: Path) -> None:
    assert read_origin(tmp_path) == origin
    assert whole(tmp_path)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"files": 1}', '{"files": {}, "source": "x", "no": 1}'])
def test_broken_record_is_none(text: str, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    assert read_origin(tmp_path) is None
    assert not whole(tmp_path)


def test_folder_without_a_record_is_not_whole(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / RECORD).unlink()
    assert not whole(tmp_path)
    assert not whole(tmp_path / "nowhere")


def test_not_whole_when_a_file_is_missing_or_of_another_size(origin: Origin, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weight")
    assert not whole(tmp_path)
    weights.unlink()
    assert not whole(tmp_path)
    weights.symlink_to(tmp_path / "a cache that is gone")
    assert not whole(tmp_path)


def test_wrong_files_are_named(origin: Origin, tmp_path: Path) -> None:
    read: dict[str, int] = {}
    assert wrong_files(tmp_path, origin, read.__setitem__) == {}
    assert read == {"config.json": 2, "model.safetensors": 7}
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert whole(tmp_path)  # which is a look at the sizes
    assert "sha256" in wrong_files(tmp_path, origin, read.__setitem__)["model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").unlink()
    wrong = wrong_files(tmp_path, origin, read.__setitem__)
    assert wrong == {"config.json": "is missing", "model.safetensors": "is 0 bytes long and not 7"}


def test_file_without_a_known_checksum_is_measured_only(origin: Origin, tmp_path: Path) -> None:
    unknown = Origin("ModelScope's cache", "a/b", None, None, {"config.json": FileOrigin(2, None)})
    (tmp_path / "config.json").write_bytes(b"[]")
    assert wrong_files(tmp_path, unknown, lambda name, done: None) == {}


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
