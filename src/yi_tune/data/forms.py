"""Where `--data` is, and the forms in which its rows hold conversations: alpaca, ShareGPT and OpenAI's messages."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yi_tune.data.identity import Message, check_messages
from yi_tune.data.rows import Repeated, RowError
from yi_tune.errors import YiTuneError, did_you_mean

# Texts that no row may hold: Yi's control tokens would end its turn, and LLaMA-Factory's own data has placeholders for
# a name.
_UNFIT = {
    "the control token {}": re.compile(
        r"<\|(?:startoftext|endoftext|im_start|im_end|im_sep|Human|Assistant|System)\|>"
    ),
    "the placeholder {}: write the name out": re.compile(r"\{\{\s*(?:name|author)\s*\}\}", re.IGNORECASE),
    "bytes that are not UTF-8": re.compile("[\ud800-\udfff]"),
    "the character NUL": re.compile("\0"),
}
_OTHER_TRAINING = ("images", "videos", "audios", "tools")
_LONGEST = 1_000_000
_FORMAT = "It is LLaMA-Factory's format."
_ROLES = {"developer": "system", "human": "user", "gpt": "assistant"} | {
    role: role for role in ("system", "user", "assistant")
}


@dataclass(frozen=True)
class Form:
    """The column of a row that holds its messages, the tags of these, and their roles by name; or, where `messages` is
    empty, the columns of an alpaca row. The names are those of a dataset_info.json.
    """

    messages: str = ""
    role_tag: str = "role"
    content_tag: str = "content"
    roles: dict[str, str] = field(default_factory=_ROLES.copy)
    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str = "history"
    system: str = "system"


@dataclass(frozen=True)
class Source:
    """A file of rows, how many of them are drawn (None: all are taken), and their form if a dataset_info.json says."""

    path: Path
    rows: int | None = None
    form: Form | None = None


def find_sources(data: list[str], data_dir: Path | None) -> list[Source]:
    """The files of `--data FILE`, `FILE:ROWS` or a name in the dataset_info.json of `--data-dir`.

    Raises YiTuneError for data that is not there.
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
            sources.append(replace(source, rows=rows or source.rows))
        elif Path(name).is_file():
            sources.append(Source(Path(name), rows))
        elif Path(name).is_dir():
            raise YiTuneError(f"--data {name} is a folder.", "Name its files, each with a --data of its own.")
        else:
            also = f", and not in {data_dir}'s dataset_info.json" if data_dir else ""
            known = did_you_mean(name, sorted(info)) if info else "A path is looked up from the current folder."
            raise YiTuneError(f"--data {name}: no such file{also}.", known)
    return sources


def _dataset_info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise YiTuneError(f"{path} cannot be read: {error}.", "--data-dir names the folder that holds it.") from None
    if not isinstance(info, dict) or not all(isinstance(entry, dict) for entry in info.values()):
        raise YiTuneError(f"{path} is not a mapping of names to datasets.", _FORMAT)
    return info


def _listed_source(name: str, entry: dict[str, Any], folder: Path) -> Source:
    """A dataset as LLaMA-Factory's dataset_info.json describes it."""
    file, formatting, samples = entry.get("file_name"), entry.get("formatting", "alpaca"), entry.get("num_samples")
    path = folder / str(file)
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    wrong = {
        "it names no file_name: it is not on this machine": not isinstance(file, str),
        "it holds preferences (ranking); yi-tune trains on answers only": bool(entry.get("ranking")),
        f"there is no file {path}": not (path).is_file(),
        f"formatting {formatting!r} is none of alpaca, sharegpt, openai": formatting
        not in ("alpaca", "sharegpt", "openai"),
        "its columns are no mapping": not isinstance(columns, dict),
        "its tags are no mapping": not isinstance(tags, dict),
        f"num_samples is {samples!r}, and no number of rows": samples is not None
        and (type(samples) is not int or samples < 1),
    }
    if why := next((text for text, applies in wrong.items() if applies), None):
        raise YiTuneError(f"The dataset {name}: {why}.", f"Mend its entry. {_FORMAT}")
    if formatting == "alpaca":
        named = ("prompt", "query", "response", "history", "system")
        changes: dict[str, Any] = {key: str(columns[key]) for key in named if key in columns}
        return Source(path, samples, Form(**changes))
    usual = ("from", "value", "human", "gpt") if formatting == "sharegpt" else ("role", "content", "user", "assistant")
    keys = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
    role, content, *speakers = (str(tags.get(key, tag)) for key, tag in zip(keys, (*usual, "system"), strict=True))
    roles = dict(zip(speakers, ("user", "assistant", "system"), strict=True))
    form = Form(str(columns.get("messages", "conversations")), role, content, roles)
    return Source(path, samples, replace(form, system=str(columns.get("system", form.system))))


def conversation(row: Any, form: Form | None) -> list[Message]:
    """The row's messages, checked: system first if at all, then user and assistant in turn, none of them empty.

    Without `form`, the row's columns tell it. Raises YiTuneError with the reason when it cannot be trained on.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not an object with columns")
    if isinstance(row, Repeated):
        raise RowError("a column is there twice")
    if other := [column for column in _OTHER_TRAINING if row.get(column)]:
        raise RowError(f"it has {other[0]}; only text is trained on")
    form = form or _recognise(row)
    system = [{"role": "system", "content": row[form.system]}] if row.get(form.system) else []
    messages = check_messages([*system, *(_messages(row, form) if form.messages else _alpaca(row, form))])
    if messages[-1]["role"] == "user":
        raise RowError("the last message is the user's: there is no answer to learn")
    for message in messages:
        if not message["content"].strip():
            raise RowError(f"a message of the {message['role']} is empty")
        for name, pattern in _UNFIT.items():
            if found := pattern.search(message["content"]):
                raise RowError(f"a message of the {message['role']} holds {name.format(found[0])}")
    if sum(len(message["content"]) for message in messages) > _LONGEST:
        raise RowError(f"longer than {_LONGEST:,} characters")
    return messages


def _recognise(row: dict[str, Any]) -> Form:
    """The form of a row, told by its columns."""
    for column in ("messages", "conversations"):  # both names are in use for both kinds of message
        if row.get(column) is not None:
            first = [message for message in _listed(row[column], column)[:1] if isinstance(message, dict)]
            return Form(column, "from", "value") if first and "from" in first[0] else Form(column)
    if "instruction" in row and "output" in row:
        return Form()
    found = ", ".join(sorted(row)[:8]) or "none"
    raise RowError(f"neither messages, nor conversations, nor instruction and output among its columns: {found}")


def _listed(value: Any, column: str) -> list[Any]:
    """A list, which in a CSV file is written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise RowError(f"{column} is a text, and not a list in JSON") from None
    if not isinstance(value, list):
        raise RowError(f"{column} is not a list")
    return value


def _messages(row: dict[str, Any], form: Form) -> list[Any]:
    messages = []
    for message in _listed(row.get(form.messages), form.messages):
        if not isinstance(message, dict) or isinstance(message, Repeated):
            raise RowError(f"{form.messages} holds something else than a message")
        if message.get("tool_calls"):
            raise RowError("it has tool_calls; only text is trained on")
        role, content = message.get(form.role_tag), message.get(form.content_tag)
        if not isinstance(role, str) or role not in form.roles:
            raise RowError(f"a message's {form.role_tag} is {role!r}, and none of {', '.join(form.roles)}")
        if isinstance(content, list):  # OpenAI's parts
            texts: list[Any] = [
                part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
            ]
            if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
                raise RowError("a message has parts that are not text")
            content = "".join(texts)
        if content or form.roles[role] != "system":  # an empty system prompt is none
            messages.append({"role": form.roles[role], "content": content})
    return messages


def _alpaca(row: dict[str, Any], form: Form) -> list[Any]:
    messages = []
    for turn in _listed(row.get(form.history) or [], form.history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(f"{form.history} is not a list of pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = [row.get(column) or "" for column in (form.prompt, form.query)]
    if not all(isinstance(text, str) for text in asked):
        raise RowError(f"{form.prompt} or {form.query} is not text")
    question = "\n".join(text for text in asked if text)
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": row.get(form.response)}]
