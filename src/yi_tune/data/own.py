"""The user's own data: found, checked row by row, brought into one form, and counted in tokens."""

import atexit
import heapq
import json
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from gettext import gettext as _
from itertools import islice
from pathlib import Path
from statistics import median

from yi_tune.config import Config
from yi_tune.data.forms import JOINED, conversation
from yi_tune.data.hub import Commits
from yi_tune.data.identity import Dataset, Message, draw
from yi_tune.data.rows import Source, find_sources
from yi_tune.errors import YiTuneError
from yi_tune.output import err

_SHOWN = 10
# Of more rows than this, so many are counted in tokens, evenly spread; and beside them a few of the most bytes.
_COUNTED, _LONGEST = 5000, 20
_BATCH = 1000
_TOKENIZER = "tokenizer.json"


def prepare_own(
    data: list[str],
    data_dir: Path | None,
    config: Config,
    *,
    skip_bad_rows: bool,
    name: str = "own",
    workspace: Path = Path(),
    pinned: Commits | None = None,
) -> tuple[Dataset, list[int]]:
    """The checked rows of `--data` as the dataset `name`, in a file that is deleted when the process ends, and the
    tokens of each: of very many rows those of a sample, repeated, with the longest.

    A hub's datasets are fetched into the workspace first, those that are `pinned` at that commit.
    Says how many there are, and how long. Raises YiTuneError for data that is not there or cannot be trained on.
    """
    option, most = ("--eval-data" if name == "eval" else "--data"), config.get("max_samples")
    folder = Path(tempfile.mkdtemp(prefix="yi-tune-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = 0
    bad: list[str] = []
    unused: set[str] = set()
    sources = find_sources(data, data_dir, option, workspace, pinned)
    with err.status(_("Checking your rows")), (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for line in (line for one in sources for line in _drawn(one, _good_lines(one, bad, unused))):
            file.write(line)
            rows += 1
    more = [_("and {more:,} more").format(more=len(bad) - _SHOWN)] if len(bad) > _SHOWN else []
    why = "".join(f"\n  {reason}" for reason in bad[:_SHOWN] + more)
    if not rows and not bad:
        raise YiTuneError("There is no row in {option}.", "Is that the right file?", option=option)
    if bad and not (rows and skip_bad_rows):
        raise YiTuneError(
            "{bad:,} of {rows:,} rows of {option} cannot be trained on:{why}",
            "Mend them, or go on without them: --skip-bad-rows. Columns of other names can be given in a "
            "dataset_info.json: --data NAME --data-dir DIR",
            bad=len(bad),
            rows=rows + len(bad),
            option=option,
            why=why,
        )
    if bad:
        err.print(_("Leaving out {bad:,} bad rows:{why}").format(bad=len(bad), why=why))
    if unused:
        err.print(_("Not trained on: {unused}.").format(unused=", ".join(sorted(unused))))
    commits = {place: commit for source in sources for place, commit in source.commits.items()}
    own = Dataset(name, rows, folder / "rows.jsonl", commits)
    if isinstance(most, int) and 0 < most < rows:  # LLaMA-Factory would take the first, and files may be sorted
        err.print(
            _("max_samples: {most:,} of {rows:,} rows of {option} are used, drawn by lot.").format(
                most=most, rows=rows, option=option
            )
        )
        own = Dataset(name, most, b"".join(draw(most, own.lines())).decode(), commits)
    return own, _measure(own, config)


def _measure(own: Dataset, config: Config) -> list[int]:
    """The tokens of the rows; says how long they are, and how many are cut or left out."""
    model, cutoff = Path(config["model_name_or_path"]), config.get("cutoff_len", 2048)
    with err.status(_("Counting their tokens")):
        stride = -(-own.rows // _COUNTED)
        lengths = list(count_tokens(model, islice(own.conversations(), 0, None, stride)))
        long = (json.loads(line)["messages"] for line in heapq.nlargest(_LONGEST, own.lines(), key=len))
        longest = max(*lengths, *count_tokens(model, long))
        joined = (json.loads(line)["messages"] for line in own.lines() if JOINED in line)
        most = max(count_tokens(model, joined), default=0)
    if isinstance(cutoff, int) and (model / _TOKENIZER).is_file():
        if most > cutoff or (most and config.get("train_on_prompt")):
            raise YiTuneError(
                "A row has an answer that is not to be learned, and {most:,} tokens: cut to cutoff_len {cutoff:,}, "
                "or with train_on_prompt, the wrong part of it would be learned.",
                "Drop train_on_prompt, and raise the limit, --set cutoff_len=..., or shorten the row.",
                most=most,
                cutoff=cutoff,
            )
        counted = _(" (of {counted:,} rows)").format(counted=len(lengths)) if len(lengths) < own.rows else ""
        over = sum(length > cutoff for length in lengths) / len(lengths)
        err.print(
            _(
                "{name} data: {rows:,} rows; tokens{counted}: min {least:,}, median {median:,}, max "
                "{longest:,}; {over:.1%} longer than cutoff_len {cutoff:,} and cut to it"
            ).format(
                name=own.name,
                rows=own.rows,
                counted=counted,
                least=min(lengths),
                median=int(median(lengths)),
                longest=longest,
                over=over,
                cutoff=cutoff,
            )
        )
    if stride > 1:
        lengths = [longest, *(length for length in lengths for _ in range(stride))]
    return lengths


def _good_lines(source: Source, bad: list[str], unused: set[str]) -> Iterator[str]:
    """The good rows as JSON lines. Into `bad` come the places of the others, and what is wrong with them; into `unused`
    the names of all that is not trained on.
    """
    for file, (where, row) in source.read():
        try:
            yield json.dumps({"messages": conversation(row, source.form, unused)}, ensure_ascii=False) + "\n"
        except YiTuneError as error:
            bad.append(f"{file}, {where}: {error.message[:200]}")


def _drawn(source: Source, lines: Iterator[str]) -> Iterable[str]:
    """As many of the lines as the source is to have."""
    if source.rows is None:
        return lines
    drawn = draw(source.rows, lines)
    missing = source.rows - len(drawn)
    if missing and not (source.repeats and drawn):
        raise YiTuneError(
            "{path} has {drawn:,} good rows; {rows:,} are asked for.",
            "Ask for fewer.",
            path=source.path,
            drawn=len(drawn),
            rows=source.rows,
        )
    return [*drawn, *random.Random(42).choices(drawn, k=missing)]  # noqa: S311


def count_tokens(model: Path, conversations: Iterable[list[Message]], *, targets_only: bool = False) -> Iterator[int]:
    """Tokens of each conversation in Yi's format, or only of its targets: all that the assistant says, with the ends.
    Bytes, which are more, where `model` has no tokenizer to count with.

    Raises YiTuneError for a tokenizer that does not load.
    """
    texts = ("".join(_in_yi_format(message, targets_only) for message in messages) for messages in conversations)
    file = model / _TOKENIZER
    if not file.is_file():
        yield from (len(text.encode()) for text in texts)
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more precise
        raise YiTuneError(
            "The tokenizer {file} does not load: {error}", "Fetch or copy that file anew.", file=file, error=error
        ) from error
    while batch := list(islice(texts, _BATCH)):
        yield from map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False))


def _in_yi_format(message: Message, targets_only: bool) -> str:
    """A message, or its targets, as LLaMA-Factory's template `yi` writes them."""
    if targets_only and message["role"] != "assistant":
        return ""
    return ("" if targets_only else f"<|im_start|>{message['role']}\n") + f"{message['content']}<|im_end|>\n"
