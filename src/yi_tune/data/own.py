"""The user's own data: found, checked row by row, counted in tokens, and kept, so that this is done once."""

import hashlib
import importlib.metadata
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from yi_tune.config import Config
from yi_tune.data.dataset import Dataset
from yi_tune.data.forms import Source, conversation, find_sources
from yi_tune.data.identity import Message
from yi_tune.data.rows import read_rows
from yi_tune.errors import YiTuneError
from yi_tune.files import hold
from yi_tune.output import err

_SHOWN = 10
# Entries that a workspace's cache keeps, the newest ones; each is about the size of its files.
_KEPT = 4
_TOKENIZER = "tokenizer.json"
_BATCH = 1000


@dataclass(frozen=True)
class OwnData:
    """Checked rows in a folder of the cache.

    Of the first bad rows `reasons` has the index of their source, the place in it, and why. `lengths` has the tokens
    of each good row, uncut; it is empty where there is no tokenizer to count with.
    """

    folder: Path
    rows: int
    bad: int
    reasons: list[tuple[int, str, str]]
    lengths: list[int]

    @property
    def dataset(self) -> Dataset:
        """The rows as the dataset `own`."""
        return Dataset("own", self.rows, self.folder / "rows.jsonl")


def prepare_own(
    data: list[str], data_dir: Path | None, config: Config, workspace: Path, *, skip_bad_rows: bool
) -> OwnData:
    """The checked rows of `--data`; says how many there are, and how long.

    Raises YiTuneError for data that is not there or cannot be trained on.
    """
    sources = find_sources(data, data_dir)
    with err.status("Checking your rows"):
        own = own_data(sources, Path(config["model_name_or_path"]), workspace)
    if not own.rows + own.bad:
        raise YiTuneError("There is no row in --data.", "Is that the right file?")
    if not own.rows:
        raise YiTuneError(
            f"None of the {own.bad:,} rows of --data can be trained on:{bad_rows(own, sources)}",
            "Columns of other names can be given in a dataset_info.json: --data NAME --data-dir DIR",
        )
    if own.bad and not skip_bad_rows:
        raise YiTuneError(
            f"{own.bad:,} of {own.rows + own.bad:,} rows of --data cannot be trained on:{bad_rows(own, sources)}",
            "Mend them, or go on without them: --skip-bad-rows",
        )
    if own.bad:
        err.print(f"Leaving out {own.bad:,} bad rows:{bad_rows(own, sources)}")
    if own.lengths:
        err.print(describe(own.lengths, config.get("cutoff_len", 2048)))
    most = config.get("max_samples")
    if isinstance(most, int) and most < own.rows:
        err.print(f"max_samples leaves out {own.rows - most:,} of them; --set max_samples=null takes all.")
    return own


def own_data(sources: list[Source], model: Path, workspace: Path) -> OwnData:
    """The rows of `sources`, checked and counted with the tokenizer of `model`; from the cache if their content, and
    not just their names and times of change, has been there before.
    """
    tokenizer = model / _TOKENIZER
    decides = [
        [[_digest(source.path), source.path.suffix.lower(), source.rows, repr(source.form)] for source in sources],
        _digest(tokenizer) if tokenizer.is_file() else None,
        importlib.metadata.version("yi-tune"),
    ]
    cache = workspace / "cache"
    folder = cache / hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    busy = YiTuneError(f"Another process checks rows in {cache}.", "Wait for it.")
    try:
        with hold(cache / ".lock", busy, patience=-1):
            if not folder.exists():
                with TemporaryDirectory(dir=cache) as name:
                    part = Path(name)
                    found = check_rows(sources, part / "rows.jsonl")
                    conversations = Dataset("own", found["rows"], part / "rows.jsonl").conversations()
                    found["lengths"] = list(count_tokens(model, conversations)) if tokenizer.is_file() else []
                    (part / "checked.json").write_text(json.dumps(found), encoding="utf-8")
                    part.rename(folder)
            os.utime(folder)
            folders = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
            for old in folders[:-_KEPT]:
                shutil.rmtree(old)
            return OwnData(folder, **json.loads((folder / "checked.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise YiTuneError(
            f"{cache} cannot be written: {error.strerror}.",
            "Free some space there, or choose another place: --workspace DIR",
        ) from None


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise YiTuneError(f"{path} cannot be read: {error.strerror}.", "Is that the right file?") from None


def check_rows(sources: list[Source], to: Path) -> dict[str, Any]:
    """Check every row of `sources` and write the good ones to the file `to`, drawn where a sample is asked for.

    Returns `rows`, `bad` and `reasons` of an OwnData. Raises YiTuneError when a file cannot be read, or has fewer good
    rows than are to be drawn.
    """
    rows = bad = 0
    reasons: list[tuple[int, str, str]] = []
    draw = random.Random(42)  # noqa: S311
    with to.open("w", encoding="utf-8") as file:
        for index, source in enumerate(sources):
            good, drawn = 0, []
            for where, row in read_rows(source.path):
                try:
                    line = json.dumps({"messages": conversation(row, source.form)}, ensure_ascii=False) + "\n"
                except YiTuneError as error:
                    bad += 1
                    if len(reasons) < _SHOWN:
                        reasons.append((index, where, _printable(error.message)))
                    continue
                good += 1
                if source.rows is None:
                    file.write(line)
                elif good <= source.rows:
                    drawn.append(line)
                elif (place := draw.randrange(good)) < source.rows:  # so each row is as likely to be drawn
                    drawn[place] = line
            if source.rows is not None and source.rows > good:
                raise YiTuneError(
                    f"{source.path} has {good:,} good rows; {source.rows:,} are asked for.", "Ask for fewer."
                )
            file.writelines(drawn)
            rows += good if source.rows is None else source.rows
    return {"rows": rows, "bad": bad, "reasons": reasons}


def _printable(text: str) -> str:
    """`text` on one line, without what a terminal or a file cannot take; it may quote the row."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def bad_rows(own: OwnData, sources: list[Source]) -> str:
    """The first bad rows, a line for each."""
    lines = [f"\n  {sources[index].path}, {where}: {why}" for index, where, why in own.reasons]
    more = own.bad - len(lines)
    return "".join(lines) + (f"\n  and {more:,} more" if more else "")


def describe(lengths: list[int], cutoff_len: object) -> str:
    """Rows, their tokens, and how many are cut, in a line."""
    ranked = sorted(lengths)
    p95 = ranked[max(0, -(-len(ranked) * 95 // 100) - 1)]
    text = (
        f"own data: {len(ranked):,} rows; tokens: min {ranked[0]:,}, median {int(median(ranked)):,}, "
        f"p95 {p95:,}, max {ranked[-1]:,}"
    )
    if not isinstance(cutoff_len, int):  # the checks of the config report it
        return text
    over = sum(length > cutoff_len for length in ranked)
    cut = f"{over:,} longer than cutoff_len {cutoff_len:,} and cut to it" if over else f"cutoff_len {cutoff_len:,}"
    return f"{text}; {cut}"


def count_tokens(model: Path, conversations: Iterable[list[Message]]) -> Iterator[int]:
    """Tokens of each conversation in Yi's format; bytes, which are more, where `model` has no tokenizer to count with.

    Raises YiTuneError for a tokenizer that does not load.
    """
    texts = (
        "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
        for messages in conversations
    )
    file = model / _TOKENIZER
    if not file.is_file():
        yield from (len(text.encode()) for text in texts)
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more precise
        raise YiTuneError(f"The tokenizer {file} does not load: {error}", "Fetch or copy that file anew.") from error
    while batch := list(islice(texts, _BATCH)):
        yield from map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False))
