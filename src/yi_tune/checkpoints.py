"""Checkpoints of a run: which are whole, whether one process wrote them or several, and whatever was divided."""

import json
import shutil
from collections.abc import Callable
from gettext import gettext as _
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from yi_tune.weights import read_header

# Where the Trainer's state has the number of processes that wrote a checkpoint: a name that no callback has.
RANKS = "ranks"
Reader = Callable[[Path], object]
# The files of a checkpoint that the Trainer needs to go on as if nothing had happened, in the order in which it writes
# them. A header (safetensors), or the directory at the end (torch writes zip files), shows that a file was cut short.
_FIRST: dict[str, Reader] = {"*.safetensors": read_header}
_LAST: dict[str, Reader] = {
    "scheduler.pt": ZipFile,
    "rng_state*.pth": ZipFile,
    "trainer_state.json": lambda file: json.loads(file.read_bytes()),
}
# What holds the optimiser. ZeRO names in `latest`, at last, the folder with a file of each process; FSDP has a whole
# state, or a folder with parts of it, whose .metadata is written when all are.
_OPTIMISERS: tuple[dict[str, Reader], ...] = (
    {"optimizer.pt": ZipFile},
    {"global_step*/*model_states.pt": ZipFile, "global_step*/*optim_states.pt": ZipFile, "latest": Path.read_bytes},
    {"pytorch_model_fsdp.bin": ZipFile, "optimizer.bin": ZipFile},
    {"pytorch_model_fsdp_0/.metadata": Path.read_bytes, "optimizer_0/.metadata": Path.read_bytes},
)
# Each process writes its own, and the first does not wait for the others'.
_OF_EACH = ("rng_state*.pth", "global_step*/*optim_states.pt")


def newest_whole(run: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint in the folder of a (locked) run. Broken ones are named, by `say`, and removed: the
    Trainer would count them when it deletes the oldest. Raises OSError for a file that cannot be read.
    """
    newest = None
    steps = {folder.name.removeprefix("checkpoint-"): folder for folder in run.glob("checkpoint-*")}
    for step in sorted(filter(str.isdecimal, steps), key=int):
        folder = steps[step]
        if lacking := broken(folder):
            shutil.rmtree(folder)
            say(
                _("{name} is broken ({file} is missing or cut short), and removed.").format(
                    name=folder.name, file=lacking.replace("*", "")
                )
            )
        else:
            newest = folder
    return newest


def broken(checkpoint: Path) -> str:
    """The first kind of file that a checkpoint lacks, or has cut short; "" of one that is whole."""
    found: dict[str, list[Any]] = {}
    written = (kinds for kinds in _OPTIMISERS if any(any(checkpoint.glob(kind)) for kind in kinds))
    for kind, read in {**_FIRST, **next(written, _OPTIMISERS[0]), **_LAST}.items():
        try:
            found[kind] = [read(file) for file in checkpoint.glob(kind)]
        except (ValueError, BadZipFile):
            return kind
        if not found[kind]:
            return kind
    ranks = found["trainer_state.json"][0].get("stateful_callbacks", {}).get(RANKS, 1)
    return next((kind for kind in _OF_EACH if len(found.get(kind, range(ranks))) < ranks), "")
