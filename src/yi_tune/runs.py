"""Run folders: `saves/<model>/<run>/` holds all that a later chat or check needs."""

import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yi_tune.config import Config, dump_config
from yi_tune.errors import YiTuneError
from yi_tune.models import LocalModel, check_path, workspace_option

_RECORD = ("model", "model_path", "weights", "identity", "data", "config")
_PACKAGES = ("yi-tune", "llamafactory", "torch", "transformers", "peft", "bitsandbytes")
# Where a run lies may change between two commands; what it trains may not.
_PLACES = ("model_name_or_path", "dataset_dir", "tokenized_path", "output_dir")


@dataclass(frozen=True)
class Run:
    """A run folder, whether it is there or not."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def tokenized(self) -> Path:
        """The rows in tokens, where own data is among them."""
        return self.data / "tokenized"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def chat_yaml(self) -> Path:
        return self.folder / "chat.yaml"

    @property
    def finished(self) -> bool:
        """Whether training and its report came to their end: report.json is written last."""
        return (self.folder / "report.json").is_file()

    @property
    def record(self) -> dict[str, Any]:
        """run.json: what was trained, from what, with which versions. Raises YiTuneError if it is broken."""
        try:
            content = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            # The first runs did not record their weights.
            return {key: ({"weights": ""} | content)[key] for key in _RECORD}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise YiTuneError(
                f"{self.folder} holds no readable run.json ({error}).", "Use another --run, or train it anew: --fresh"
            ) from None

    def checkpoint(self) -> Path | None:
        """The newest whole checkpoint. Broken ones, of a process killed while saving, are removed."""
        folders = [path for path in self.folder.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
        for folder in sorted(folders, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
            # The Trainer writes trainer_state.json last.
            try:
                json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                shutil.rmtree(folder)
            else:
                return folder
        return None

    def write(self, file: str, content: str) -> None:
        """Write a text file of the run: all of it or none."""
        part = self.folder / f"{file}.part"
        part.write_text(content, encoding="utf-8")
        part.replace(self.folder / file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the system lets go of it when the process ends, however it ends.

        Raises YiTuneError when another process holds it, or the folder cannot be written.
        """
        try:
            lock = FileLock(self.folder / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise YiTuneError(
                f"Another process is working on the run {self.name!r}.", "Wait for it, or use another --run."
            ) from None
        except OSError as error:
            raise YiTuneError(
                f"{self.folder} cannot be written: {error.strerror}.",
                "Free or choose another place: --workspace DIR",
            ) from None
        try:
            yield
        finally:
            lock.release()


def train_run(workspace: Path, local: LocalModel, name: str) -> Run:
    """The folder a run called `name` trains into; raises YiTuneError for a name or place that cannot be."""
    _check_name(name)
    folder = workspace / "saves" / local.model.folder / name
    for path in (folder, local.path):
        check_path(path)
    return Run(folder)


def _check_name(run: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", run):
        raise YiTuneError(f"--run {run!r} is not a folder name.", "Use letters, digits, '-', '_' and '.'.")


def record(config: Config, local: LocalModel, identity: dict[str, str], data: dict[str, str]) -> dict[str, Any]:
    """The content of run.json; `data` has the file of each dataset, whose name tells its content."""
    return {
        "model": local.model.name,
        "model_path": str(local.path),
        "weights": local.weights_digest,
        "identity": identity,
        "data": data,
        "config": config,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What of two run.json would train otherwise, as `key: old -> new`."""

    def trains(content: dict[str, Any]) -> dict[str, Any]:
        config = {key: value for key, value in content["config"].items() if key not in _PLACES}
        same = {key: content[key] for key in ("model", "weights")}
        # The first runs had one dataset.
        data = content["data"] if isinstance(content["data"], dict) else {"identity": content["data"]}
        return {**same, **{f"data {name}": file for name, file in data.items()}, **content["identity"], **config}

    before, after = trains(old), trains(new)
    if not (before["weights"] and after["weights"]):  # of weights that nobody has hashed nothing is known
        before["weights"] = after["weights"]
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def prepare(run: Run, new: dict[str, Any], *, fresh: bool) -> Path | None:
    """Make the (locked) folder ready to train what `new` says; returns the checkpoint to go on from, if any.

    Raises YiTuneError, and changes nothing, when the folder holds something else.
    """
    marker = run.folder / "run.json"
    # A run.json.part is all there is when the disk was full from the start.
    content = [path for path in run.folder.iterdir() if path.name not in (".lock", "run.json.part")]
    if content and not marker.is_file():
        raise YiTuneError(f"{run.folder} is not empty and no run of yi-tune's.", "Use another --run.")
    if content and not fresh:
        changed = differences(run.record, new)
        if changed:
            raise YiTuneError(
                f"The run {run.name!r} exists with other settings ({'; '.join(changed)}).",
                "Train beside it with another --run NAME, or replace it with --fresh.",
            )
        if run.finished:
            where = workspace_option(run.folder.parents[2])
            raise YiTuneError(
                f"The run {run.name!r} is finished already, with these very settings.",
                f"Talk to it: yi-tune chat --run {run.name}{where}   Or train it anew with --fresh.",
            )
        return run.checkpoint()
    # The marker last: until it goes, the folder is known to be ours.
    for path in sorted(content, key=lambda path: path == marker):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    run.write("run.json", json.dumps(new, ensure_ascii=False, indent=2))
    return None


def _runs(workspace: Path) -> list[Run]:
    return [Run(file.parent) for file in (workspace / "saves").glob("*/*/run.json")]


def has_finished(workspace: Path) -> bool:
    """Whether there is a finished run."""
    return any(run.finished for run in _runs(workspace))


def find_run(workspace: Path, name: str | None = None, model: LocalModel | None = None) -> Run:
    """The newest finished run, of those called `name` or tuned from `model` if given.

    Raises YiTuneError when there is none.
    """
    if name:
        _check_name(name)
    found = [
        run
        for run in _runs(workspace)
        if name in (None, run.name) and (model is None or run.folder.parent.name == model.model.folder)
    ]
    if finished := [run for run in found if run.finished]:
        return max(finished, key=lambda run: (run.folder / "report.json").stat().st_mtime)
    if found and name:
        raise YiTuneError(f"The run {name!r} is not finished.", "The command that started it goes on with it.")
    what = f"run called {name!r}" if name else "finished run"
    raise YiTuneError(
        f"There is no {what} in {workspace / 'saves'}.",
        f"Train one: yi-tune train --name NAME --author AUTHOR{workspace_option(workspace)}",
    )


def write_configs(run: Run, train: Config, chat: Config) -> None:
    """Write train.yaml and chat.yaml, which llamafactory-cli takes as they are."""
    run.write("train.yaml", f"# llamafactory-cli train {run.folder}/train.yaml\n{dump_config(train)}")
    run.write("chat.yaml", f"# llamafactory-cli chat {run.folder}/chat.yaml\n{dump_config(chat)}")
