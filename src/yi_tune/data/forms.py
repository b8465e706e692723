"""Where `--data` is, and the forms in which its rows hold conversations: alpaca, ShareGPT and OpenAI's messages."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yi_tune.data.identity import Message, check_messages
from yi_tune.data.rows import RowError
from yi_tune.errors import YiTuneError, did_you_mean

# Yi's control tokens, which would end a turn, the placeholders of LLaMA-Factory's own data, NUL and half characters.
_UNFIT = re.compile(
    r"<\|(?:startoftext|endoftext|im_start|im_end|im_sep|Human|Assistant|System)\|>"
    "|(?i:\\{\\{\\s*(?:name|author)\\s*\\}\\})|[\0\ud800-\udfff]"
)
_ROLES = {"developer": "system", "human": "user", "gpt": "assistant"} | {
    role: role for role in ("system", "user", "assistant")
}
# The columns and tags that a dataset_info.json need not name.
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
_TAGS = {
    "sharegpt": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    "openai": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


@dataclass(frozen=True)
class Form:
    """The columns of a row by their names in a dataset_info.json: one of `messages`, or those of an alpaca row. Of a
    message it has the tags, and the roles by name.
    """

    columns: dict[str, str]
    role: str = "role"
    content: str = "content"
    roles: dict[str, str] = field(default_factory=lambda: _ROLES)


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
        if (match := re.fullmatch(r"(.+):([1-9]\d*)", text)) and text not in info and not Path(text).exists():
            name, rows = match[1], int(match[2])
        if data_dir and name in info:
            source = _listed_source(name, info[name], data_dir)
            sources.append(replace(source, rows=rows or source.rows))
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
        raise YiTuneError(
            f"{path} cannot be read as a mapping of names to datasets: {error}.",
            "--data-dir names the folder that holds it, in LLaMA-Factory's format.",
        ) from None


def _listed_source(name: str, entry: dict[str, Any], folder: Path) -> Source:
    """A dataset as LLaMA-Factory's dataset_info.json describes it."""
    formatting = entry.get("formatting", "alpaca")
    path = folder / str(entry.get("file_name"))
    wrong = {
        "it names no file_name: it is not on this machine": "file_name" not in entry,
        "it holds preferences (ranking); yi-tune trains on answers only": bool(entry.get("ranking")),
        f"there is no file {path}": not path.is_file(),
        f"formatting {formatting!r} is none of alpaca, sharegpt, openai": formatting not in ("alpaca", *_TAGS),
    }
    if why := next((text for text, applies in wrong.items() if applies), None):
        raise YiTuneError(f"The dataset {name}: {why}.", "Mend its entry. It is LLaMA-Factory's format.")
    columns = entry.get("columns", {})
    if formatting == "alpaca":
        form = Form(_ALPACA | columns)
    else:
        tags = {"system_tag": "system", **_TAGS[formatting], **entry.get("tags", {})}
        roles = {tags[f"{role}_tag"]: role for role in ("user", "assistant", "system")}
        columns = {"messages": "conversations", "system": "system"} | columns
        form = Form(columns, tags["role_tag"], tags["content_tag"], roles)
    return Source(path, entry.get("num_samples"), form)


def conversation(row: Any, form: Form | None) -> list[Message]:
    """The row's messages, checked: system first if at all, then user and assistant in turn, none of them empty.

    Without `form`, the row's columns tell it. Raises YiTuneError with the reason when it cannot be trained on.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not an object with columns")
    if other := [column for column in ("images", "videos", "audios", "tools") if row.get(column)]:
        raise RowError(f"it has {other[0]}; only text is trained on")
    form = form or _recognise(row)
    system = row.get(form.columns["system"])
    head = [{"role": "system", "content": system}] if system else []
    messages = check_messages([*head, *(_messages(row, form) if "messages" in form.columns else _alpaca(row, form))])
    if messages[-1]["role"] == "user":
        raise RowError("the last message is the user's: there is no answer to learn")
    for message in messages:
        if not message["content"].strip():
            raise RowError(f"a message of the {message['role']} is empty")
        if found := _UNFIT.search(message["content"]):
            raise RowError(
                f"a message of the {message['role']} holds {found[0]!r}: no control token, placeholder (write the name "
                "out), NUL or broken UTF-8 is trained on"
            )
    return messages


def _recognise(row: dict[str, Any]) -> Form:
    """The form of a row, told by its columns."""
    for column in ("messages", "conversations"):  # both names are in use for both kinds of message
        if row.get(column) is not None:
            columns = {"messages": column, "system": "system"}
            first = [message for message in _listed(row[column], column)[:1] if isinstance(message, dict)]
            return Form(columns, "from", "value") if first and "from" in first[0] else Form(columns)
    if "instruction" in row and "output" in row:
        return Form(_ALPACA)
    raise RowError(f"neither messages, nor conversations, nor instruction and output among its columns: {sorted(row)}")


def _listed(value: Any, column: str) -> list[Any]:
    """A list, which in a CSV file is written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            pass
    if not isinstance(value, list):
        raise RowError(f"{column} is not a list")
    return value


def _messages(row: dict[str, Any], form: Form) -> list[Any]:
    column = form.columns["messages"]
    messages = []
    for message in _listed(row.get(column), column):
        if not isinstance(message, dict):
            raise RowError(f"{column} holds something else than a message")
        if message.get("tool_calls"):
            raise RowError("it has tool_calls; only text is trained on")
        role, content = message.get(form.role), message.get(form.content)
        if not isinstance(role, str) or role not in form.roles:
            raise RowError(f"a message's {form.role} is {role!r}, and none of {', '.join(form.roles)}")
        if isinstance(content, list):  # OpenAI's parts, of which only text has a `text`
            try:
                content = "".join(part["text"] for part in content)
            except (KeyError, TypeError):
                raise RowError("a message has parts that are not text") from None
        if content or form.roles[role] != "system":  # an empty system prompt is none
            messages.append({"role": form.roles[role], "content": content})
    return messages


def _alpaca(row: dict[str, Any], form: Form) -> list[Any]:
    prompt, query, response, history = (form.columns[name] for name in ("prompt", "query", "response", "history"))
    messages = []
    for turn in _listed(row.get(history) or [], history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(f"{history} is not a list of pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = [text for text in (row.get(prompt), row.get(query)) if text]
    if not all(isinstance(text, str) for text in asked):
        raise RowError(f"{prompt} or {query} is not text")
    return [
        *messages,
        {"role": "user", "content": "\n".join(asked)},
        {"role": "assistant", "content": row.get(response)},
    ]
