"""What of a downloaded folder differs from its record."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yi_tune.models import At, FileOrigin, Origin, sha256


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
