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
from yi_tune.models import LocalModel

DEFAULT_RUN = "identity"

_PACKAGES = ("yi-tune", "llamafactory", "torch", "transformers", "peft", "bitsandbytes")
# Where a run lies may change between two commands; what it trains may not.
_PLACES = ("model_name_or_path", "dataset_dir", "output_dir")


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
            record: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise YiTuneError(f"{self.folder} holds no readable run.json ({error}).", "Use another --run.") from None
        return record

    def checkpoint(self) -> Path | None:
        """The newest whole checkpoint. Broken ones, of a process killed while saving, are removed."""
        for folder in sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True):
            # The Trainer writes trainer_state.json last.
            try:
                json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
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
            self.folder.mkdir(parents=True, exist_ok=True)
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


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def train_run(workspace: Path, local: LocalModel, name: str) -> Run:
    """The folder a run called `name` trains into; raises YiTuneError for a name or place that cannot be."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise YiTuneError(f"--run {name!r} is not a folder name.", "Use letters, digits, '-', '_' and '.'.")
    folder = workspace / "saves" / local.model.folder / name
    for path in (folder, local.path):
        if "," in str(path):
            raise YiTuneError(f"The path {path} has a comma, where LLaMA-Factory cuts it in two.", "Rename it.")
    return Run(folder)


def record(config: Config, local: LocalModel, identity: dict[str, str], data: str) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "model": local.model.name,
        "model_path": str(local.path),
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
        return {"model": content["model"], **content["identity"], **config, "data": content["data"]}

    before, after = trains(old), trains(new)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def prepare(run: Run, new: dict[str, Any], *, fresh: bool) -> Path | None:
    """Make the (locked) folder ready to train what `new` says; returns the checkpoint to go on from, if any.

    Raises YiTuneError, and changes nothing, when the folder holds something else.
    """
    content = [path for path in run.folder.iterdir() if path.name != ".lock"]
    if content and not (run.folder / "run.json").is_file():
        raise YiTuneError(f"{run.folder} is not empty and no run of yi-tune's.", "Use another --run.")
    if content and not fresh:
        changed = differences(run.record, new)
        if changed:
            raise YiTuneError(
                f"The run {run.name!r} exists with other settings ({'; '.join(changed)}).",
                "Train beside it with another --run NAME, or replace it with --fresh.",
            )
        if run.finished:
            raise YiTuneError(
                f"The run {run.name!r} is finished already, with these very settings.",
                f"Talk to it: yi-tune chat --run {run.name}   Or train it anew with --fresh.",
            )
        return run.checkpoint()
    for path in content:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    run.write("run.json", json.dumps(new, ensure_ascii=False, indent=2))
    return None


def find_run(workspace: Path, name: str | None = None, model: LocalModel | None = None) -> Run:
    """The newest finished run, of those called `name` or tuned from `model` if given.

    Raises YiTuneError when there is none.
    """
    folder = model.model.folder if model else "*"
    found = [Run(file.parent) for file in (workspace / "saves").glob(f"{folder}/{name or '*'}/run.json")]
    if finished := [run for run in found if run.finished]:
        return max(finished, key=lambda run: (run.folder / "report.json").stat().st_mtime)
    if found and name:
        raise YiTuneError(f"The run {name!r} is not finished.", "The command that started it goes on with it.")
    what = f"run called {name!r}" if name else "finished run"
    raise YiTuneError(
        f"There is no {what} in {workspace / 'saves'}.",
        "Train one: yi-tune train --name NAME --author AUTHOR",
    )


def write_configs(run: Run, train: Config, chat: Config) -> None:
    """Write train.yaml and chat.yaml, which llamafactory-cli takes as they are."""
    run.write("train.yaml", f"# llamafactory-cli train {run.folder}/train.yaml\n{dump_config(train)}")
    run.write("chat.yaml", f"# llamafactory-cli chat {run.folder}/chat.yaml\n{dump_config(chat)}")
