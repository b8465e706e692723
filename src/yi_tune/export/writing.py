"""A finished run as files that other programs load: all of them, or no folder that looks like it.

They are written into `TARGET.part/`, which gets its record (export.json) last and is then renamed to `TARGET/`.
"""

import json
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from rich.filesize import decimal

from yi_tune.config import Config
from yi_tune.errors import YiTuneError, is_disk_full
from yi_tune.export.card import write_card, write_modelfile
from yi_tune.output import engine_output_to, log_folder
from yi_tune.progress import Progress
from yi_tune.resources import DATA
from yi_tune.runs.folder import Run
from yi_tune.shapes import read_shape

Quant = Literal["f16", "q8_0", "q4_0"]

RECORD = "export.json"
_LOCK = ".lock"
# The chat template trained with: LLaMA-Factory's `yi` in transformers' form, which is what nano ships.
CHAT_TEMPLATE = DATA / "nano" / "chat_template.jinja"

# Bytes of a number: blocks of 32 share a 16-bit scale.
_WIDTH = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
# What is written beside the numbers: header, tokenizer, card. Yi's tokenizer takes 4 MB.
_REST = 8_000_000


@dataclass(frozen=True)
class Record:
    """The content of export.json: who the model is, its GGUF file ("" in Hugging Face's format), and all files."""

    run: str
    identity: dict[str, str]
    gguf: str
    files: list[str]


@dataclass(frozen=True)
class Export:
    """What to export, and to where; `quant` None is Hugging Face's format, else GGUF in this kind."""

    run: Run
    # The model's folder that it was trained from.
    base: Path
    # Without an adapter, the run folder itself is the model.
    full: bool
    target: Path
    quant: Quant | None

    @property
    def gguf(self) -> str:
        """The name of the GGUF file; "" where there is none."""
        return f"{self.run.name}-{self.quant}.gguf" if self.quant else ""

    @property
    def bytes(self) -> int:
        """About how much it will take, in bytes."""
        shape = read_shape(self.base)
        # At q4_0 embeddings and head are kept in q8_0.
        ends = 2 * shape.vocab * shape.hidden
        wide = _WIDTH[self.quant or "f16"]
        numbers = (shape.parameters - ends) * wide + ends * (_WIDTH["q8_0"] if self.quant == "q4_0" else wide)
        return int(numbers) + _REST


def plan_export(run: Run, base: Config, target: Path | None, quant: Quant | None, workspace: Path) -> Export:
    """What `run`, whose base's chat config is `base`, is exported to.

    Raises YiTuneError for a base that an adapter cannot be merged into.
    """
    folder = Path(base["model_name_or_path"])
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise YiTuneError(
            f"{folder} is quantised already, and an adapter can only be merged into 16-bit weights.",
            "Train the run on the 16-bit model; yi-tune train quantises it while it loads.",
        )
    if target is None:
        # As in saves/: runs of two models may have one name.
        target = workspace / "exports" / run.folder.parent.name / (f"{run.name}-{quant}" if quant else run.name)
    return Export(run, folder, base.get("finetuning_type") == "full", target.resolve(), quant)


def read_record(folder: Path) -> Record:
    """The record in `folder`. Raises YiTuneError when there is none."""
    try:
        return Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise YiTuneError(
            f"{folder} is no export of yi-tune's: it holds no {RECORD}.", "Make one: yi-tune export"
        ) from None


def export(plan: Export, *, force: bool) -> None:
    """Write the export.

    Raises YiTuneError, with nothing changed, when the target is taken (with `force`: by something that is no export)
    or there is not the room for it.
    """
    _check_target(plan.target, force=force)
    with _part(plan.target) as part:
        # Asked for here, where an unfinished export before this one is gone from it.
        if plan.bytes > (free := shutil.disk_usage(part).free):
            raise YiTuneError(
                f"The export takes {decimal(plan.bytes)}, and {plan.target.parent} has {decimal(free)} free.",
                "Free some space, or choose another place: --to DIR",
            )
        log = log_folder() / "export.log"
        log.unlink(missing_ok=True)
        with engine_output_to(log) as console, Progress(console) as progress:
            progress.stage("Loading transformers")
            try:
                _write(plan, part, progress)
            except YiTuneError:
                raise
            except Exception as error:
                traceback.print_exc()
                if is_disk_full(error, part):
                    raise YiTuneError(f"The disk of {plan.target.parent} is full.", "Free some space.") from error
                raise YiTuneError(f"The export failed: {error}", f"The whole story is in {log}") from error
        _put_in_place(part, plan.target)


def _write(plan: Export, part: Path, progress: Progress) -> None:
    from yi_tune.engine.export import export as write_model

    record = plan.run.record
    write_model(
        weights=plan.run.folder if plan.full else plan.base,
        adapter=None if plan.full else plan.run.folder,
        base=plan.base,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        folder=part,
        gguf=plan.gguf,
        quant=plan.quant,
        name=record["identity"].get("name", plan.run.name),
        progress=progress,
    )
    write_modelfile(part, plan.base, plan.gguf)
    write_card(part, plan.run, plan.base, plan.gguf)
    files = sorted(path.name for path in part.iterdir() if path.name != _LOCK)
    own = Record(plan.run.name, record["identity"], plan.gguf, files)
    (part / RECORD).write_text(json.dumps(asdict(own), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _check_target(target: Path, *, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise YiTuneError(f"{target} is a file.", "Choose a folder that is empty or not there: --to DIR")
    if target.is_mount():  # nothing can be renamed to it, and the room is looked at beside it
        raise YiTuneError(f"{target} is a file system of its own.", f"Choose a folder in it: --to {target / 'export'}")
    content = {path.name for path in target.iterdir()} - {_LOCK}
    if content and not force:
        raise YiTuneError(
            f"{target} is not empty.", "Replace an export with --force, or choose another place: --to DIR"
        )
    if content:
        own = {*read_record(target).files, RECORD} if (target / RECORD).is_file() else set()
        if others := sorted(content - own):
            raise YiTuneError(
                f"{target} holds what yi-tune did not put there ({', '.join(others[:3])}).",
                "--force replaces nothing but an export. Choose another place: --to DIR",
            )


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """An empty `TARGET.part/`, held for this process, and removed again unless it becomes the target."""
    part = target.with_name(f"{target.name}.part")
    if part.exists() and not (part / _LOCK).is_file():
        raise YiTuneError(f"{part} is in the way, and no export that was broken off.", "Move it away.")
    try:
        part.mkdir(parents=True, exist_ok=True)
        lock = FileLock(part / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise YiTuneError(
            f"Another process is exporting to {target}.", "Wait for it, or choose another place: --to DIR"
        ) from None
    except OSError as error:
        raise YiTuneError(f"{part} cannot be written: {error.strerror}.", "Choose another place: --to DIR") from None
    try:
        for path in part.iterdir():  # of an export that was killed
            if path.name != _LOCK:
                path.unlink()
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        lock.release()


def _put_in_place(part: Path, target: Path) -> None:
    """Rename `part`; an export that it replaces is there until then."""
    old = Path(tempfile.mkdtemp(prefix=f"{target.name}.old-", dir=target.parent))
    if target.exists():
        target.rename(old)
    part.rename(target)
    (target / _LOCK).unlink()
    shutil.rmtree(old)
