"""The user's own data: found, checked row by row, brought into one form, and counted in tokens."""

import atexit
import heapq
import json
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median

from yi_tune.config import Config
from yi_tune.data.dataset import Dataset
from yi_tune.data.forms import Source, conversation, find_sources
from yi_tune.data.identity import Message
from yi_tune.data.rows import read_rows
from yi_tune.errors import YiTuneError
from yi_tune.output import err

_SHOWN = 10
# Of more rows than this, so many are counted in tokens, evenly spread; and beside them a few of the most bytes.
_COUNTED, _LONGEST = 5000, 20
_BATCH = 1000
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class OwnData:
    """Checked rows, in a folder that is deleted when the process ends.

    `reasons` says of the first bad rows their place, and why. `lengths` has the tokens of the rows that were counted,
    uncut, and `longest` those of the longest; there are none where there is no tokenizer to count with.
    """

    folder: Path
    rows: int
    bad: int
    reasons: list[str]
    lengths: list[int] = field(default_factory=list)
    longest: int = 0

    @property
    def dataset(self) -> Dataset:
        """The rows as the dataset `own`."""
        return Dataset("own", self.rows, self.folder / "rows.jsonl")

    @property
    def why(self) -> str:
        """The first bad rows, a line for each."""
        more = self.bad - len(self.reasons)
        return "".join(f"\n  {reason}" for reason in self.reasons) + (f"\n  and {more:,} more" if more else "")


def prepare_own(data: list[str], data_dir: Path | None, config: Config, *, skip_bad_rows: bool) -> OwnData:
    """The checked rows of `--data`; says how many there are, and how long.

    Raises YiTuneError for data that is not there or cannot be trained on.
    """
    sources = find_sources(data, data_dir)
    with err.status("Checking your rows"):
        own = check_rows(sources, Path(config["model_name_or_path"]))
    if not own.rows + own.bad:
        raise YiTuneError("There is no row in --data.", "Is that the right file?")
    if not own.rows:
        raise YiTuneError(
            f"None of the {own.bad:,} rows of --data can be trained on:{own.why}",
            "Columns of other names can be given in a dataset_info.json: --data NAME --data-dir DIR",
        )
    if own.bad and not skip_bad_rows:
        raise YiTuneError(
            f"{own.bad:,} of {own.rows + own.bad:,} rows of --data cannot be trained on:{own.why}",
            "Mend them, or go on without them: --skip-bad-rows",
        )
    if own.bad:
        err.print(f"Leaving out {own.bad:,} bad rows:{own.why}")
    if own.lengths:
        err.print(describe(own, config.get("cutoff_len", 2048)))
    most = config.get("max_samples")
    if isinstance(most, int) and most < own.rows:
        err.print(f"max_samples leaves out {own.rows - most:,} of them; --set max_samples=null takes all.")
    return own


def check_rows(sources: list[Source], model: Path) -> OwnData:
    """Check every row of `sources`, keep the good ones, drawn where a sample is asked for, and count them with the
    tokenizer of `model`.

    Raises YiTuneError when a file cannot be read, or has fewer good rows than are to be drawn.
    """
    folder = Path(tempfile.mkdtemp(prefix="yi-tune-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = bad = 0
    reasons: list[str] = []
    draw = random.Random(42)  # noqa: S311
    try:
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for source in sources:
                good, drawn = 0, []
                for where, row in read_rows(source.path):
                    try:
                        line = json.dumps({"messages": conversation(row, source.form)}, ensure_ascii=False) + "\n"
                    except YiTuneError as error:
                        bad += 1
                        if len(reasons) < _SHOWN:
                            reasons.append(f"{source.path}, {where}: {_printable(error.message)}")
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
    except OSError as error:
        raise YiTuneError(
            f"{folder} cannot be written: {error.strerror}.",
            "Free some space there, or name another place for files that are needed for a while: TMPDIR=DIR",
        ) from None
    own = OwnData(folder, rows, bad, reasons)
    if not rows or not (model / _TOKENIZER).is_file():
        return own
    spread = islice(own.dataset.conversations(), 0, None, -(-rows // _COUNTED))
    most = heapq.nlargest(_LONGEST, own.dataset.conversations(), key=lambda messages: len(_text(messages).encode()))
    lengths = list(count_tokens(model, spread))
    return replace(own, lengths=lengths, longest=max(*lengths, *count_tokens(model, most)))


def _printable(text: str) -> str:
    """`text` on one line, without what a terminal or a file cannot take; it may quote the row."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def describe(own: OwnData, cutoff_len: object) -> str:
    """Rows, their tokens, and how many are cut, in a line."""
    counted = len(own.lengths)
    text = f"own data: {own.rows:,} rows; tokens" + (f" (of {counted:,} rows)" if counted < own.rows else "")
    text += f": min {min(own.lengths):,}, median {int(median(own.lengths)):,}, max {own.longest:,}; "
    if not isinstance(cutoff_len, int):  # the checks of the config report it
        return f"{text}cutoff_len {cutoff_len}"
    over = sum(length > cutoff_len for length in own.lengths) / counted
    return f"{text}{over:.1%} longer than cutoff_len {cutoff_len:,} and cut to it"


def count_tokens(model: Path, conversations: Iterable[list[Message]]) -> Iterator[int]:
    """Tokens of each conversation in Yi's format; bytes, which are more, where `model` has no tokenizer to count with.

    Raises YiTuneError for a tokenizer that does not load.
    """
    texts = map(_text, conversations)
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


def _text(messages: list[Message]) -> str:
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
