"""The user's own data: found, checked row by row, and kept tokenised, so that this is done once."""

import hashlib
import importlib.metadata
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from yi_tune.config import Config
from yi_tune.dataset import Dataset
from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.forms import ALPACA, OPENAI, SHAREGPT, Form, conversation
from yi_tune.identity import Message
from yi_tune.rows import RowError, read_rows

_SHOWN = 10
# Of the newest tokenised data in a workspace so many are kept; each is about the size of its files.
_KEPT = 4
# Of a config, what the tokens of a row depend on.
TOKEN_KEYS = (
    *("template", "cutoff_len", "default_system", "train_on_prompt", "mask_history"),
    *("enable_thinking", "preserve_thinking", "tool_format"),
)


@dataclass(frozen=True)
class Source:
    """A file of rows, how many of them are drawn (None: all are taken), and their form if a dataset_info.json says."""

    path: Path
    rows: int | None = None
    form: Form | None = None


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
    """Checked rows in a folder of the cache: as JSON lines, and, once tokenised, as tokens."""

    folder: Path
    checked: Checked

    @property
    def dataset(self) -> Dataset:
        """The rows as the dataset `own`."""
        return Dataset("own", self.checked.rows, self.folder / "rows.jsonl")

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"


def find_sources(data: list[str], data_dir: Path | None) -> list[Source]:
    """What `--data FILE`, `FILE:ROWS` or a name in the dataset_info.json of `--data-dir` stands for.

    Raises YiTuneError for what is not there.
    """
    info = _dataset_info(data_dir) if data_dir else {}
    sources = []
    for text in data:
        name, rows = text, None
        if (match := re.fullmatch(r"(.+):(\d+)", text)) and text not in info and not Path(text).exists():
            name, rows = match[1], int(match[2])
            if rows == 0:
                raise YiTuneError(f"--data {text}: a sample of no rows.", "Ask for one at least.")
        if data_dir and name in info:
            source = _listed_source(name, info[name], data_dir)
            sources.append(replace(source, rows=rows if rows is not None else source.rows))
        elif Path(name).is_file():
            sources.append(Source(Path(name), rows))
        elif Path(name).is_dir():
            raise YiTuneError(f"--data {name} is a folder.", "Name its files, each with a --data of its own.")
        else:
            known = did_you_mean(name, sorted(info)) if info else "A path is looked up from the current folder."
            raise YiTuneError(
                f"--data {name}: no such file" + (f", and not in {data_dir}'s dataset_info.json." if data_dir else "."),
                known,
            )
    return sources


def _dataset_info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise YiTuneError(f"{path} cannot be read: {error}.", "--data-dir names the folder that holds it.") from None
    if not isinstance(info, dict) or not all(isinstance(entry, dict) for entry in info.values()):
        raise YiTuneError(f"{path} is not a mapping of names to datasets.", "It is LLaMA-Factory's format.")
    return info


def _listed_source(name: str, entry: dict[str, Any], folder: Path) -> Source:
    """A dataset as LLaMA-Factory's dataset_info.json describes it."""
    if not isinstance(file := entry.get("file_name"), str):
        raise YiTuneError(f"The dataset {name} names no file_name: it is not on this machine.", "Download it first.")
    if entry.get("ranking"):
        raise YiTuneError(f"The dataset {name} holds preferences (ranking).", "yi-tune trains on answers only.")
    if not (folder / file).is_file():
        raise YiTuneError(f"The dataset {name}: there is no file {folder / file}.", "Mend its file_name.")
    formatting = entry.get("formatting", "alpaca")
    forms = {"alpaca": ALPACA, "sharegpt": SHAREGPT, "openai": replace(OPENAI, messages="conversations")}
    if formatting not in forms:
        raise YiTuneError(f"The dataset {name}: formatting {formatting!r} is none of {', '.join(forms)}.", "Mend it.")
    columns, tags = ({key: str(value) for key, value in entry.get(part, {}).items()} for part in ("columns", "tags"))
    form = forms[formatting]
    if formatting == "alpaca":
        form = replace(
            form,
            prompt=columns.get("prompt", form.prompt),
            query=columns.get("query", form.query),
            response=columns.get("response", form.response),
            history=columns.get("history", form.history),
            system=columns.get("system", form.system),
        )
    else:
        roles = {"system_tag": "system", "user_tag": "user", "assistant_tag": "assistant"}
        usual = {role: tag for tag, role in form.roles.items() if formatting == "openai" or tag in ("human", "gpt")}
        named = {tags.get(tag, usual.get(role, role)): role for tag, role in roles.items()}
        form = replace(
            form,
            messages=columns.get("messages", form.messages),
            system=columns.get("system", form.system),
            role_tag=tags.get("role_tag", form.role_tag),
            content_tag=tags.get("content_tag", form.content_tag),
            roles=named,
        )
    return Source(folder / file, entry.get("num_samples"), form)


def check_rows(sources: list[Source], to: Path) -> Checked:
    """Check every row of `sources` and write the good ones to the file `to`, drawn where a sample is asked for.

    Raises YiTuneError when a file cannot be read, or has fewer good rows than are to be drawn.
    """
    rows, bad = 0, 0
    reasons: list[tuple[int, str, str]] = []
    with to.open("w", encoding="utf-8") as file:
        for index, source in enumerate(sources):
            good = 0
            part = to.with_suffix(".part")
            with part.open("w", encoding="utf-8") as all_good:
                for line, result in _checked_rows(source):
                    if isinstance(result, RowError):
                        bad += 1
                        if len(reasons) < _SHOWN:
                            unit = "row" if source.path.suffix.lower() == ".parquet" else "line"
                            reasons.append((index, f"{unit} {line}", _printable(str(result))))
                    else:
                        good += 1
                        all_good.write(json.dumps({"messages": result}, ensure_ascii=False) + "\n")
            if source.rows is not None and source.rows > good:
                raise YiTuneError(
                    f"{source.path} has {good:,} good rows; {source.rows:,} are asked for.", "Ask for fewer."
                )
            drawn = None if source.rows is None else set(random.Random(42).sample(range(good), source.rows))  # noqa: S311
            with part.open(encoding="utf-8", newline="\n") as all_good:
                file.writelines(text for row, text in enumerate(all_good) if drawn is None or row in drawn)
            part.unlink()
            rows += good if drawn is None else len(drawn)
    return Checked(rows, bad, reasons)


def _checked_rows(source: Source) -> Iterator[tuple[int, list[Message] | RowError]]:
    for line, row in read_rows(source.path):
        try:
            yield line, conversation(row, source.form)
        except RowError as error:
            yield line, error


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


def prepare(sources: list[Source], config: Config, workspace: Path, *, skip_bad_rows: bool) -> OwnData:
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
                checked = check_rows(sources, folder / "rows.jsonl")
                part = folder / "checked.part"
                part.write_text(json.dumps(vars(checked)), encoding="utf-8")
                part.replace(folder / "checked.json")
            os.utime(folder)
            _forget_old(cache)
    except OSError as error:
        raise YiTuneError(f"{cache} cannot be written: {error.strerror}.", "Free or choose another place.") from None
    own = OwnData(folder, Checked(**json.loads((folder / "checked.json").read_text(encoding="utf-8"))))
    _judge(own.checked, sources, skip_bad_rows=skip_bad_rows)
    return own


def bad_rows(checked: Checked, sources: list[Source]) -> str:
    """The first bad rows, a line for each."""
    lines = [f"\n  {sources[index].path}, {where}: {why}" for index, where, why in checked.reasons]
    more = checked.bad - len(lines)
    return "".join(lines) + (f"\n  and {more:,} more" if more else "")


def tokenise(own: OwnData, config: Config) -> None:
    """Bring the rows into tokens, on all cores, unless that has been done before."""
    with FileLock(own.folder.parent / ".lock"):
        if not own.tokens.exists():
            from yi_tune.engine.tokens import write_tokens

            part = own.folder / "tokens.part"
            shutil.rmtree(part, ignore_errors=True)
            write_tokens(own.dataset, part, config)
            part.replace(own.tokens)


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
