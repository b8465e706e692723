"""The user's own data: found, checked row by row, and kept tokenised, so that this is done once."""

import errno
import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from filelock import FileLock

from yi_tune.config import Config
from yi_tune.data.dataset import Dataset
from yi_tune.data.forms import conversation
from yi_tune.data.identity import Message
from yi_tune.data.rows import RowError, read_rows
from yi_tune.data.sources import Source, find_sources
from yi_tune.errors import YiTuneError, is_disk_full
from yi_tune.output import engine_output_to, log_folder
from yi_tune.screen import err

_SHOWN = 10
_LOG = "data.log"
# Of the newest tokenised data in a workspace so many are kept; each is about the size of its files.
_KEPT = 4
# Of a config, what the tokens of a row depend on.
TOKEN_KEYS = (
    *("template", "cutoff_len", "default_system", "train_on_prompt", "mask_history"),
    *("enable_thinking", "preserve_thinking", "tool_format"),
)


@dataclass(frozen=True)
class Checked:
    """What the check of all rows found: how many are good, how many bad, and of the first bad ones which of the
    sources they are in, where there, and why.
    """

    rows: int
    bad: int
    reasons: list[tuple[int, str, str]]


@dataclass(frozen=True)
class OwnData:
    """Checked rows in a folder of the cache: as JSON lines, and, once tokenised, as tokens.

    `lengths` has the tokens of each row, uncut; it is empty until they are tokenised.
    """

    folder: Path
    checked: Checked
    lengths: tuple[int, ...] = ()

    @property
    def dataset(self) -> Dataset:
        """The rows as the dataset `own`."""
        return Dataset("own", self.checked.rows, self.folder / "rows.jsonl")

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"


def check_rows(sources: list[Source], to: Path) -> Checked:
    """Check every row of `sources` and write the good ones to the file `to`, drawn where a sample is asked for.

    Raises YiTuneError when a file cannot be read, or has fewer good rows than are to be drawn.
    """
    rows, bad = 0, 0
    reasons: list[tuple[int, str, str]] = []
    with to.open("w", encoding="utf-8") as file:
        for index, source in enumerate(sources):
            good = 0
            for where, result in _checked_rows(source):
                if isinstance(result, RowError):
                    bad += 1
                    if len(reasons) < _SHOWN:
                        reasons.append((index, where, _printable(str(result))))
                else:
                    good += 1
                    if source.rows is None:
                        file.write(_json_line(result))
            if source.rows is None:
                rows += good
                continue
            if source.rows > good:
                raise YiTuneError(
                    f"{source.path} has {good:,} good rows; {source.rows:,} are asked for.", "Ask for fewer."
                )
            # Read once more: rows that are not drawn take neither memory nor disk.
            drawn = set(random.Random(42).sample(range(good), source.rows))  # noqa: S311
            all_good = (result for _, result in _checked_rows(source) if not isinstance(result, RowError))
            file.writelines(_json_line(result) for row, result in enumerate(all_good) if row in drawn)
            rows += source.rows
    return Checked(rows, bad, reasons)


def _json_line(messages: list[Message]) -> str:
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def _checked_rows(source: Source) -> Iterator[tuple[str, list[Message] | RowError]]:
    for where, row in read_rows(source.path):
        try:
            yield where, conversation(row, source.form)
        except RowError as error:
            yield where, error


def _printable(text: str) -> str:
    """`text` on one line, without what a terminal or a file cannot take; it may quote the row."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def digest(path: Path) -> str:
    """The sha256 of a file's content. Raises YiTuneError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise YiTuneError(f"{path} cannot be read: {error.strerror}.", "Is that the right file?") from None


def own_data(sources: list[Source], config: Config, workspace: Path, *, skip_bad_rows: bool) -> OwnData:
    """The checked rows of `sources`, from the cache if this very content has been there before.

    Nothing but content decides: neither names nor times of change do. Raises YiTuneError for bad rows,
    unless they are to be skipped, and when there is no good one.
    """
    model = Path(config["model_name_or_path"])
    decides = {
        "sources": [[digest(source.path), source.rows, repr(source.form)] for source in sources],
        "suffixes": [source.path.suffix.lower() for source in sources],
        "tokenizer": {file.name: digest(file) for file in sorted(model.glob("*token*")) if file.is_file()},
        "config": {key: config[key] for key in TOKEN_KEYS if key in config},
        "versions": [importlib.metadata.version(name) for name in ("yi-tune", "llamafactory", "transformers")],
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    cache = workspace / "cache"
    folder = cache / key
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            if not (folder / "checked.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                try:
                    checked = check_rows(sources, folder / "rows.jsonl")
                    part = folder / "checked.part"
                    part.write_text(json.dumps(vars(checked)), encoding="utf-8")
                    part.replace(folder / "checked.json")
                finally:
                    if not (folder / "checked.json").exists():  # what is half done only takes room
                        shutil.rmtree(folder)
            os.utime(folder)
            _forget_old(cache)
    except OSError as error:
        raise _unwritable(cache, str(error.strerror)) from None
    own = OwnData(folder, Checked(**json.loads((folder / "checked.json").read_text(encoding="utf-8"))))
    _judge(own.checked, sources, skip_bad_rows=skip_bad_rows)
    return own


def _unwritable(cache: Path, why: str) -> YiTuneError:
    return YiTuneError(
        f"{cache} cannot be written: {why}.", "Free some space there, or choose another place: --workspace DIR"
    )


def bad_rows(checked: Checked, sources: list[Source]) -> str:
    """The first bad rows, a line for each."""
    lines = [f"\n  {sources[index].path}, {where}: {why}" for index, where, why in checked.reasons]
    more = checked.bad - len(lines)
    return "".join(lines) + (f"\n  and {more:,} more" if more else "")


def tokenise(own: OwnData, config: Config) -> OwnData:
    """The same rows in tokens, made on all cores unless that has been done before.

    Raises YiTuneError when the config does not let them be.
    """
    from yi_tune.engine.tokens import read_lengths, write_tokens

    with FileLock(own.folder.parent / ".lock"):
        if not own.tokens.exists():
            part = own.folder / "tokens.part"
            shutil.rmtree(part, ignore_errors=True)
            try:
                write_tokens(own.dataset, part, config)
            except Exception as error:
                traceback.print_exc()
                full = is_disk_full(error, own.folder)
                shutil.rmtree(part, ignore_errors=True)
                if full:
                    raise _unwritable(own.folder.parent, os.strerror(errno.ENOSPC)) from None
                raise YiTuneError(f"Your rows cannot be tokenised: {error}.", f"See {log_folder() / _LOG}") from None
            part.replace(own.tokens)
        return replace(own, lengths=tuple(read_lengths(own.tokens)))


def describe(lengths: tuple[int, ...], cutoff_len: int) -> str:
    """Rows, their tokens, and how many are cut, in a line."""
    ranked = sorted(lengths)
    p95 = ranked[max(0, -(-len(ranked) * 95 // 100) - 1)]
    over = sum(length > cutoff_len for length in ranked)
    cut = f"{over:,} longer than cutoff_len {cutoff_len:,} and cut to it" if over else f"cutoff_len {cutoff_len:,}"
    return (
        f"own data: {len(ranked):,} rows; tokens: min {ranked[0]:,}, median {int(median(ranked)):,}, "
        f"p95 {p95:,}, max {ranked[-1]:,}; {cut}"
    )


def mix(datasets: Sequence[Dataset], own: OwnData, config: Config, folder: Path) -> None:
    """Bring all rows of a run together in tokens, unless they are; what was cut short is begun anew."""
    if folder.exists():
        return
    from yi_tune.engine.mixture import write_mixture

    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    write_mixture(datasets, own, config, part)
    part.replace(folder)


def _forget_old(cache: Path) -> None:
    folders = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-_KEPT]:
        shutil.rmtree(folder)


def _judge(checked: Checked, sources: list[Source], *, skip_bad_rows: bool) -> None:
    if not (checked.rows or checked.bad):
        raise YiTuneError("There is no row in --data.", "Is that the right file?")
    if not checked.rows:
        raise YiTuneError(
            f"None of the {checked.bad:,} rows of --data can be trained on:{bad_rows(checked, sources)}",
            "Columns of other names can be given in a dataset_info.json: --data NAME --data-dir DIR",
        )
    if checked.bad and not skip_bad_rows:
        raise YiTuneError(
            f"{checked.bad:,} of {checked.rows + checked.bad:,} rows of --data cannot be trained on:"
            f"{bad_rows(checked, sources)}",
            "Mend them, or go on without them: --skip-bad-rows",
        )


def prepare_own(
    data: list[str], data_dir: Path | None, config: Config, workspace: Path, *, skip_bad_rows: bool, tokens: bool
) -> OwnData:
    """The rows of `--data`, checked, and with `tokens` tokenised; says what they are.

    Raises YiTuneError for what is not there or cannot be trained on.
    """
    sources = find_sources(data, data_dir)
    with err.status("Checking your rows"):
        own = own_data(sources, config, workspace, skip_bad_rows=skip_bad_rows)
    if own.checked.bad:
        note = f"Leaving out {own.checked.bad:,} bad rows:{bad_rows(own.checked, sources)}"
        err.print(note, markup=False, soft_wrap=True)
    if not tokens:
        return own
    cutoff_len = config.get("cutoff_len", 2048)
    if type(cutoff_len) is not int or cutoff_len < 1:
        raise YiTuneError(f"cutoff_len: {cutoff_len!r} is no number of tokens.", "For example: --set cutoff_len=1024")
    with err.status("Bringing your rows into tokens"), engine_output_to(log_folder() / _LOG):
        own = tokenise(own, config)
    err.print(describe(own.lengths, cutoff_len), markup=False, soft_wrap=True)
    most = config.get("max_samples")
    if most is not None and most < len(own.lengths):
        note = f"max_samples leaves out {len(own.lengths) - most:,} of them; --set max_samples=null takes all."
        err.print(note, markup=False, soft_wrap=True)
    return own
