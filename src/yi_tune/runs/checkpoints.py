"""Which of a run's checkpoints are whole: only such a one can be gone on from."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

# What the Trainer writes into a checkpoint, in this order, and needs to go on as if nothing had happened. Without the
# optimizer's state it would go on too, but from another point, and say nothing.
_NEEDED = ("*.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json")
_INDEX = "model.safetensors.index.json"


def newest_whole(run: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint in the folder of a (locked) run. Broken ones are named, by `say`, and removed.

    Removed, because they take room on a disk that may be full, and because the Trainer counts them when it deletes
    the oldest. Raises OSError, and removes nothing more, for a file that may be whole but cannot be read.
    """
    whole = []
    for folder in _checkpoints(run):
        if fault := find_fault(folder):
            shutil.rmtree(folder)
            say(f"{folder.name} is broken ({fault}), and removed.")
        else:
            whole.append(folder)
    return max(whole, key=_step, default=None)


def _checkpoints(run: Path) -> list[Path]:
    return [path for path in run.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: a file that is missing or cut short. None when it is whole.

    Contents are not read: a header and a length (safetensors), or the directory at the end (what torch writes is a zip
    file), tell a file that was cut short.
    """
    for pattern in _NEEDED:
        if not any(checkpoint.glob(pattern)):
            return f"{pattern.replace('*', '')} is missing"
    for file in sorted(checkpoint.iterdir()):
        if not _is_whole(file):
            return f"{file.name} is cut short"
    index = checkpoint / _INDEX
    shards = json.loads(index.read_bytes())["weight_map"].values() if index.exists() else ()
    return next((f"{shard} is missing" for shard in sorted(set(shards)) if not (checkpoint / shard).exists()), None)


def _is_whole(file: Path) -> bool:
    match file.suffix:
        case ".json":
            try:
                json.loads(file.read_bytes())
            except ValueError:
                return False
        case ".pt" | ".pth" | ".bin":
            with file.open("rb") as opened:  # which raises what cannot be read; is_zipfile(path) says no to it
                return zipfile.is_zipfile(opened)
        case ".safetensors":
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(file, framework="numpy"):
                    pass
            except SafetensorError:
                return False
    return True
