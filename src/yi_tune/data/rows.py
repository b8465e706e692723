"""The rows of `--data`: where they are, their files (JSON, JSON lines, CSV, Parquet), and the forms in which they hold
conversations: alpaca, ShareGPT and OpenAI's messages.
"""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yi_tune.data.identity import Message, check_messages
from yi_tune.errors import YiTuneError, did_you_mean

# Yi's control tokens, which would end a turn, the placeholders of LLaMA-Factory's own data, NUL and half characters.
_UNFIT = re.compile(
    r"<\|(?:startoftext|endoftext|im_start|im_end|im_sep|Human|Assistant|System)\|>"
    r"|(?i:\{\{\s*(?:name|author)\s*\}\})|[\0\ud800-\udfff]"
)
# The place of a row, as "line 3" or "row 3", and the row or its error.
Row = tuple[str, Any]
# The names of a row's columns and of its messages' tags: those that a dataset_info.json need not say.
Form = dict[str, str]
_SHAREGPT = {"messages": "conversations", "system": "system", "role_tag": "from", "content_tag": "value"}
_SHAREGPT |= {"user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}
_OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_FORMS: dict[str, Form] = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"}
    | {"history": "history", "system": "system"},
    "sharegpt": _SHAREGPT,
    "openai": _SHAREGPT | _OPENAI,
}
# Roles by names that are in use beside those of the form.
_ROLES = {"developer": "system", "human": "user", "gpt": "assistant"}
_ROLES |= {role: role for role in ("system", "user", "assistant")}


@dataclass(frozen=True)
class Source:
    """A file of rows, how many of them are drawn (None: all are taken), and their form if a dataset_info.json says."""

    path: Path
    rows: int | None = None
    form: Form | None = None


def find_sources(data: list[str], data_dir: Path | None) -> list[Source]:
    """The files of `--data FILE`, `FILE:ROWS` or a name in the dataset_info.json of `--data-dir`; YiTuneError if there
    are none.
    """
    info = _dataset_info(data_dir) if data_dir else {}
    sources = []
    for text in data:
        name, rows = text, None
        if (match := re.fullmatch(r"(.+):([1-9]\d*)", text)) and text not in info and not Path(text).exists():
            name, rows = match[1], int(match[2])
        if data_dir and name in info:
            sources.append(_listed_source(name, info[name], data_dir, rows))
        elif Path(name).is_file():
            sources.append(Source(Path(name), rows))
        else:
            also = f", and not in {data_dir}'s dataset_info.json" if data_dir else ""
            usual = "Name a file by its path from the current folder, and each file of a folder with its own --data."
            raise YiTuneError(f"--data {name}: no such file{also}.", did_you_mean(name, sorted(info)) or usual)
    return sources


def _dataset_info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        return {name: dict(entry) for name, entry in json.loads(path.read_text(encoding="utf-8-sig")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = f"{path} cannot be read as a mapping of names to datasets: {error}."
        raise YiTuneError(message, "--data-dir names the folder that holds it, in LLaMA-Factory's format.") from None


def _listed_source(name: str, entry: dict[str, Any], folder: Path, rows: int | None) -> Source:
    """A dataset as LLaMA-Factory's dataset_info.json describes it."""
    formatting, ranking, file = entry.get("formatting", "alpaca"), entry.get("ranking", False), entry.get("file_name")
    path = folder / str(file)
    if formatting not in _FORMS or ranking or not path.is_file():
        raise YiTuneError(
            f"The dataset {name} cannot be trained on: formatting {formatting!r}, ranking {ranking}, file {file!r}.",
            f"yi-tune takes {', '.join(_FORMS)}, with answers and no preferences, from a file in {folder}.",
        )
    form = _FORMS[formatting] | entry.get("columns", {}) | entry.get("tags", {})
    return Source(path, rows or entry.get("num_samples"), form)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time, with a YiTuneError in place of a broken one; raises one for a broken file."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    ending = path.suffix.lower()
    if ending not in readers:
        raise YiTuneError(f"{path} is none of {', '.join(readers)}.", "Its ending says how it is read: rename it.")
    try:
        yield from readers[ending](path)
    except UnicodeDecodeError:
        raise YiTuneError(f"{path} is not UTF-8.", "Save it as UTF-8: yi-tune reads nothing else.") from None
    except OSError as error:
        raise YiTuneError(f"{path} cannot be read: {error.strerror or error}.", "Is that the right file?") from None
    except (ValueError, RecursionError) as error:
        remedy = "Mend that place, or copy the file anew: the rows behind it cannot be read."
        raise YiTuneError(f"{path} is broken: {error}.", remedy) from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row: Any
                try:
                    row = json.loads(line.decode("utf-8-sig").rstrip())
                except json.JSONDecodeError as error:
                    row = YiTuneError(f"broken JSON: {error.msg} at column {error.colno}")
                except (ValueError, RecursionError) as error:  # not UTF-8, or a number of too many digits
                    row = YiTuneError(str(error))
                yield f"line {number}", row


def _json(path: Path) -> Iterator[Row]:
    """An array of rows. A file that does not begin as one is read as JSON lines, which are often called .json too."""
    with path.open(encoding="utf-8-sig") as file:
        while (first := file.read(1)).isspace():
            pass
        if first != "[":
            yield from _jsonl(path)
            return
        file.seek(0)
        yield from ((f"row {number}", row) for number, row in enumerate(json.load(file), 1))


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(16_000_000)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns = next(reader, [])
        line = reader.line_num + 1
        try:
            for cells in reader:
                if len(cells) == len(columns):
                    yield f"line {line}", dict(zip(columns, cells, strict=True))
                elif cells:
                    yield f"line {line}", YiTuneError(f"{len(cells)} cells under {len(columns)} columns")
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"line {line}: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        number = 0
        for group in range(file.num_row_groups):  # all at once they take more memory the more there are
            for batch in file.iter_batches(batch_size=256, row_groups=[group]):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield f"row {number}", row


def conversation(row: Any, form: Form | None) -> list[Message]:
    """The row's messages, checked: system first if at all, then user and assistant in turn, none of them empty.

    Without `form`, the row's columns tell it. Raises YiTuneError with the reason when it cannot be trained on.
    """
    if isinstance(row, YiTuneError):
        raise row
    if not isinstance(row, dict):
        raise YiTuneError("not an object with columns")
    form = form or _recognise(row)
    if other := [column for column in ("images", "videos", "audios", "tools") if row.get(form.get(column, column))]:
        raise YiTuneError(f"it has {other[0]}; only text is trained on")
    system = row.get(form["system"])
    head = [{"role": "system", "content": system}] if system else []
    messages = check_messages([*head, *(_messages(row, form) if "role_tag" in form else _alpaca(row, form))])
    if messages[-1]["role"] == "user":
        raise YiTuneError("the last message is the user's: there is no answer to learn")
    for message in messages:
        if not message["content"].strip():
            raise YiTuneError(f"a message of the {message['role']} is empty")
        if found := _UNFIT.search(message["content"]):
            unfit = "no control token, placeholder (write the name out), NUL or broken UTF-8 is trained on"
            raise YiTuneError(f"a message of the {message['role']} holds {found[0]!r}: {unfit}")
    return messages


def _recognise(row: dict[str, Any]) -> Form:
    """The form of a row, told by its columns."""
    for column in ("messages", "conversations"):  # both names are in use for both kinds of message
        if row.get(column) is not None:
            tagged = any("from" in message for message in _listed(row[column], column) if isinstance(message, dict))
            return _FORMS["sharegpt" if tagged else "openai"] | {"messages": column}
    if "instruction" in row and "output" in row:
        return _FORMS["alpaca"]
    raise YiTuneError(f"neither messages, conversations, nor instruction and output among its columns: {sorted(row)}")


def _listed(value: Any, column: str) -> list[Any]:
    """A list, which in a CSV file is written as JSON."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value) if value.strip() else []
    if not isinstance(value, list):
        raise YiTuneError(f"{column} is not a list")
    return value


def _messages(row: dict[str, Any], form: Form) -> list[Any]:
    column, role_tag, content_tag = form["messages"], form["role_tag"], form["content_tag"]
    roles = _ROLES | {form[f"{role}_tag"]: role for role in ("user", "assistant", "system")}
    messages = []
    for message in _listed(row.get(column), column):
        if not isinstance(message, dict):
            raise YiTuneError(f"{column} holds something else than a message")
        if message.get("tool_calls"):
            raise YiTuneError("it has tool_calls; only text is trained on")
        role, content = message.get(role_tag), message.get(content_tag)
        if not isinstance(role, str) or role not in roles:
            raise YiTuneError(f"a message's {role_tag} is {role!r}, and none of {', '.join(roles)}")
        if isinstance(content, list):  # OpenAI's parts, of which only text has a `text`
            try:
                content = "".join(part["text"] for part in content)
            except (KeyError, TypeError):
                raise YiTuneError("a message has parts that are not text") from None
        if content or roles[role] != "system":  # an empty system prompt is none
            messages.append({"role": roles[role], "content": content})
    return messages


def _alpaca(row: dict[str, Any], form: Form) -> list[Any]:
    prompt, query, response, history = (form[name] for name in ("prompt", "query", "response", "history"))
    turns = _listed(row.get(history) or [], history)
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise YiTuneError(f"{history} is not a list of pairs")
    asked = [text for text in (row.get(prompt), row.get(query)) if text]
    if not all(isinstance(text, str) for text in asked):
        raise YiTuneError(f"{prompt} or {query} is not text")
    pairs = [*turns, ("\n".join(asked), row.get(response))]
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
