"""The forms in which rows hold conversations: alpaca, ShareGPT and OpenAI's messages; and what makes a row unfit."""

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from yi_tune.data.identity import Message
from yi_tune.data.rows import Repeated, RowError

# Yi's control tokens: written out in a text they would end its turn.
_CONTROL = re.compile(r"<\|(?:startoftext|endoftext|im_start|im_end|im_sep|Human|Assistant|System)\|>")
# LLaMA-Factory's identity.json, and its like.
_PLACEHOLDER = re.compile(r"\{\{\s*(?:name|author)\s*\}\}", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_OTHER_TRAINING = ("images", "videos", "audios", "tools")
_LONGEST = 1_000_000


@dataclass(frozen=True)
class Form:
    """Where a row has its conversation: in a column of messages, or where `messages` is "", in columns of its own.

    The names are those of LLaMA-Factory's dataset_info.json.
    """

    messages: str = ""
    role_tag: str = "role"
    content_tag: str = "content"
    # What a message's role is called, and what it is.
    roles: dict[str, str] = field(
        default_factory=lambda: {"system": "system", "user": "user", "assistant": "assistant"}, hash=False
    )
    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str = "history"
    system: str = "system"


ALPACA = Form()
# `developer` is what newer models of OpenAI's call the system's role. It stands first, since the last one of a role is
# what a dataset_info.json has to name if it is called otherwise.
OPENAI = Form("messages", roles={"developer": "system", "system": "system", "user": "user", "assistant": "assistant"})
SHAREGPT = Form(
    "conversations",
    role_tag="from",
    content_tag="value",
    roles={"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
)


def recognise(row: dict[str, Any]) -> Form:
    """The form of a row, told by its columns; raises RowError when it is none of the three."""
    for form, column in ((OPENAI, "messages"), (SHAREGPT, "conversations")):
        if row.get(column) is not None:
            # Both names are in use for both kinds of message.
            messages = _listed(row[column], column)
            first = messages[0] if messages and isinstance(messages[0], dict) else {}
            kind = SHAREGPT if "from" in first else OPENAI if "role" in first else form
            return replace(kind, messages=column)
    if "instruction" in row and "output" in row:
        return ALPACA
    found = ", ".join(sorted(row)[:8]) or "none"
    raise RowError(f"neither messages, nor conversations, nor instruction and output among its columns: {found}")


def conversation(row: Any, form: Form | None) -> list[Message]:
    """The row's messages, checked: system first if at all, then user and assistant in turn, none of them empty.

    Without `form`, the row's columns tell it. Raises RowError with the reason when it cannot be trained on.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError("not an object with columns")
    if isinstance(row, Repeated):
        raise RowError("a column is there twice")
    for column in _OTHER_TRAINING:
        if row.get(column):
            raise RowError(f"it has {column}; only text is trained on")
    form = form or recognise(row)
    messages = _messages(row, form) if form.messages else _alpaca(row, form)
    _check(messages)
    return messages


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


def _messages(row: dict[str, Any], form: Form) -> list[Message]:
    listed = _listed(row.get(form.messages), form.messages)
    messages = []
    if row.get(form.system):
        messages.append({"role": "system", "content": row[form.system]})
    for message in listed:
        if not isinstance(message, dict) or isinstance(message, Repeated):
            raise RowError(f"{form.messages} holds something else than a message")
        if message.get("tool_calls"):
            raise RowError("it has tool_calls; only text is trained on")
        role = message.get(form.role_tag)
        if not isinstance(role, str) or role not in form.roles:
            raise RowError(f"a message's {form.role_tag} is {role!r}, and none of {', '.join(form.roles)}")
        content = _text(message.get(form.content_tag))
        if content or form.roles[role] != "system":  # an empty system prompt is none
            messages.append({"role": form.roles[role], "content": content})
    return messages


def _text(content: Any) -> Any:
    """OpenAI's content in parts, if they are all text, as one; what is no list is left for _check."""
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    if len(texts) < len(content):
        raise RowError("a message has parts that are not text")
    return "".join(texts)


def _alpaca(row: dict[str, Any], form: Form) -> list[Message]:
    messages = [{"role": "system", "content": row[form.system]}] if row.get(form.system) else []
    for turn in _listed(row.get(form.history) or [], form.history):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(f"{form.history} is not a list of pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = [row.get(column) or "" for column in (form.prompt, form.query)]
    if not all(isinstance(text, str) for text in asked):
        raise RowError(f"{form.prompt} or {form.query} is not text")
    question = "\n".join(text for text in asked if text)
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": row.get(form.response)}]


def _check(messages: list[Message]) -> None:
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise RowError("no messages")
    for turn, message in enumerate(turns):
        expected = ("user", "assistant")[turn % 2]
        if message["role"] != expected:
            raise RowError(f"a message of the {message['role']} where the {expected}'s is due")
    if len(turns) % 2:
        raise RowError("the last message is the user's: there is no answer to learn")
    for message in messages:
        role, content = message["role"], message["content"]
        if not isinstance(content, str):
            raise RowError(f"what the {role} says is not text")
        if not content.strip():
            raise RowError(f"what the {role} says is empty")
        if "\0" in content:
            raise RowError(f"what the {role} says holds the character NUL")
        if found := _CONTROL.search(content):
            raise RowError(f"what the {role} says holds the control token {found[0]}")
        if found := _PLACEHOLDER.search(content):
            raise RowError(f"what the {role} says holds the placeholder {found[0]}: write the name out")
        if not content.isascii() and _SURROGATE.search(content):
            raise RowError(f"what the {role} says is not UTF-8")
    if sum(len(message["content"]) for message in messages) > _LONGEST:
        raise RowError(f"longer than {_LONGEST:,} characters")
