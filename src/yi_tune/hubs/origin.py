"""download.json: where a model folder came from, and what belongs in it. It is written last."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

RECORD = "download.json"

_BLOCK = 1 << 20

# Is told of a file how many of its bytes have been read.
At = Callable[[str, int], None]


@dataclass(frozen=True)
class FileOrigin:
    """A file's size in bytes and its sha256; None where neither the hub nor a cache said what it ought to be."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Origin:
    """The content of download.json. `corrected` says what yi-tune changed, "" for nothing."""

    source: str
    repository: str
    revision: str | None
    commit: str | None
    files: dict[str, FileOrigin] = field(default_factory=dict)
    corrected: str = ""

    def write(self, folder: Path) -> None:
        """Write the record: all of it or none."""
        part = folder / f"{RECORD}.part"
        part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        part.replace(folder / RECORD)


def read_origin(folder: Path) -> Origin | None:
    """The record in `folder`, or None when there is none that can be read."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {name: FileOrigin(**entry) for name, entry in content.pop("files").items()}
        return Origin(**content, files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def whole(folder: Path) -> bool:
    """Whether `folder` holds a record and every file of it, in its size: what a call that fetches nothing asks."""
    origin = read_origin(folder)
    if origin is None:
        return False
    try:
        return all((folder / name).stat().st_size == entry.size for name, entry in origin.files.items())
    except OSError:  # missing, or a link to a cache that is gone
        return False


def sha256(path: Path, at: At = lambda name, done: None) -> str:
    """The sha256 of a file; `at` is told how far it is."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            at(path.name, file.tell())
    return digest.hexdigest()


def wrong_files(folder: Path, origin: Origin, at: At) -> dict[str, str]:
    """Hash every file of the record; returns what is wrong with those that differ, by name."""

    def wrong(name: str, entry: FileOrigin) -> str:
        path = folder / name
        try:
            if (size := path.stat().st_size) != entry.size:
                return f"is {size} bytes long and not {entry.size}"
            if entry.sha256 is not None and sha256(path, at) != entry.sha256:
                return "has other content (its sha256 differs)"
        except FileNotFoundError:
            return "is missing"
        return ""

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        found = pool.map(wrong, origin.files, origin.files.values())
        return {name: what for name, what in zip(origin.files, found, strict=True) if what}
