"""The forms in which rows hold conversations: alpaca, ShareGPT and OpenAI's messages."""

import json
import re
from contextlib import suppress
from gettext import gettext as _
from typing import Any

from yi_tune.data.identity import Message, check_messages
from yi_tune.errors import YiTuneError

# The names of a row's columns and of its messages' tags, by what dataset_info.json calls them; None is no column.
Form = dict[str, str | None]
ALPACA: Form = {"prompt": "instruction", "query": "input", "response": "output"}
# The tags of messages where nobody lists them, and the roles.
_SHAREGPT: Form = {"role_tag": "from", "content_tag": "value"}
_OPENAI: Form = {"role_tag": "role", "content_tag": "content"}
_ROLES: dict[str | None, str] = {"system": "system", "developer": "system", "user": "user", "human": "user"}
_ROLES |= {"assistant": "assistant", "gpt": "assistant"}
# Columns, by dataset_info.json's name for them or by their own, that make a row more than text to be learned.
_BESIDE_TEXT = (
    "images",
    "videos",
    "audios",
    "tools",
    "chosen",
    "rejected",
    "kto_tag",
    "image",
    "video",
    "audio",
    "functions",
)
# A message's keys that say whether it is learned: OpenAI's, and those of other trainers.
_LEARNED = ("weight", "loss", "train")
_MARKS = ("true", "false", "0", "1", "0.0", "1.0")
# Yi's control tokens, which would end a turn, the placeholders of LLaMA-Factory's own data, NUL and half characters.
_UNFIT = re.compile(
    r"<\|(?:startoftext|endoftext|im_start|im_end|im_sep|Human|Assistant|System)\|>"
    r"|(?i:\{\{\s*(?:name|author)\s*\}\})|<(?:NAME|AUTHOR)>|[\0\ud800-\udfff]"
)


def conversation(row: Any, form: Form | None, dropped: set[str] | None = None) -> list[Message]:
    """The row's messages, checked: system first if at all, then user and assistant in turn, none of them empty. Into
    `dropped` come the names of columns and of messages' keys that hold something, and are not trained on.

    Without `form`, the row's columns tell it. Raises YiTuneError with the reason when it cannot be trained on.
    """
    if isinstance(row, YiTuneError):
        raise row
    if not isinstance(row, dict):
        raise YiTuneError("not an object with columns")
    form = form or _recognise(row)
    unused = {column for column, value in row.items() if column not in form.values() and _holds(value)}
    unfit = [column for key in _BESIDE_TEXT for column in (form.get(key), key) if column and _holds(row.get(column))]
    # Marks of the whole row: good or bad, learned or not. CSV has them as words.
    unfit += [f"{key} {row[key]}" for key in ("label", *_LEARNED) if str(row.get(key, "")).lower() in _MARKS]
    if unfit:
        raise YiTuneError("it has {found}; only text is trained on, and all of it alike", found=unfit[0])
    said = _messages(row, form, unused) if form.get("messages") else _alpaca(row, form)
    system = row.get(form.get("system"))
    if system and not (said and said[0].get("role") == "system"):
        said = [{"role": "system", "content": system}, *said]
    if said and said[0] == {"role": "system", "content": ""}:  # an empty system prompt is none
        said = said[1:]
    messages = check_messages(said)
    if messages[-1]["role"] == "user":
        raise YiTuneError("the last message is the user's: there is no answer to learn")
    for message in messages:
        if not message["content"].strip():
            raise YiTuneError("a message of the {role} is empty", role=message["role"])
        if found := _UNFIT.search(message["content"]):
            unfit_text = _("no control token, placeholder (write the name out), NUL or broken UTF-8 is trained on")
            raise YiTuneError(
                "a message of the {role} holds {found!r}: {unfit_text}",
                role=message["role"],
                found=found[0],
                unfit_text=unfit_text,
            )
    if dropped is not None:
        dropped |= unused
    return _learn(messages, [one.get("learned", True) for one in said])


def _holds(value: Any) -> bool:
    """Whether a column or a key holds something; a list may be written as JSON."""
    return value not in (None, "", [], {}, "[]", "null")


# Where an answer that is not learned begins, in a line of JSON.
JOINED = b"<|im_start|>assistant\\n"


def _learn(messages: list[Message], learned: list[bool]) -> list[Message]:
    """The messages, with each answer that is not to be learned as a part of the user's next one, written as the
    template `yi` does: the model reads the same tokens. Raises YiTuneError when no answer is left.
    """
    joined: list[Message] = []
    before = ""
    for message, learn in zip(messages, learned, strict=True):
        if message["role"] == "user":
            joined.append({"role": "user", "content": before + message["content"]})
            before = ""
        elif message["role"] == "system" or learn:
            joined.append(message)
        else:
            answer = f"<|im_end|>\n<|im_start|>assistant\n{message['content']}<|im_end|>\n<|im_start|>user\n"
            before = joined.pop()["content"] + answer
    if joined[-1:] == [] or joined[-1]["role"] != "assistant":
        raise YiTuneError("none of its answers is to be learned")
    return joined


def _recognise(row: dict[str, Any]) -> Form:
    """The form of a row, told by its columns."""
    for column in ("messages", "conversations"):  # both names are in use for both kinds of message
        if row.get(column) is not None:
            return {"messages": column, "system": "system"}
    if "instruction" in row and "output" in row:
        return ALPACA | {"history": "history", "system": "system"}
    raise YiTuneError(
        "neither messages, conversations, nor instruction and output among its columns: {columns}", columns=sorted(row)
    )


def _listed(value: Any, column: str) -> list[Any]:
    """A list, which in a CSV file is written as JSON."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value) if value.strip() else []
    if not isinstance(value, list):
        raise YiTuneError("{column} is not a list", column=column)
    return value


def _messages(row: Any, form: Form, unused: set[str]) -> list[Any]:
    column = str(form["messages"])
    found = _listed(row.get(column), column)
    if not all(isinstance(message, dict) for message in found):
        raise YiTuneError("{column} holds something else than a message", column=column)
    if form.get("role_tag"):
        roles: dict[str | None, str] = {form.get(f"{role}_tag"): role for role in ("user", "assistant", "system")}
    else:
        form, roles = (_SHAREGPT if any("from" in message for message in found) else _OPENAI), _ROLES
    role_tag, content_tag = str(form["role_tag"]), str(form["content_tag"])
    messages = []
    for message in found:
        if calls := [key for key in ("tool_calls", "function_call") if _holds(message.get(key))]:
            raise YiTuneError("it has {key}; only text is trained on", key=calls[0])
        role, content = message.get(role_tag), message.get(content_tag)
        if not isinstance(role, str) or role not in roles:
            known = ", ".join(name for name in roles if name)
            raise YiTuneError(
                "a message's {role_tag} is {role!r}, and none of {known}", role_tag=role_tag, role=role, known=known
            )
        if isinstance(content, list):  # OpenAI's parts, of which only text has a `text`
            try:
                content = "".join(part["text"] for part in content)
            except (KeyError, TypeError):
                raise YiTuneError("a message has parts that are not text") from None
        if marks := [key for key in _LEARNED if message.get(key) not in (None, 0, 1)]:
            raise YiTuneError(
                "a message has {key} {value!r}: true and 1 are learned, false and 0 not",
                key=marks[0],
                value=message[marks[0]],
            )
        unused |= {key for key in message if key not in (role_tag, content_tag, *_LEARNED) and _holds(message[key])}
        learned = {} if all(message.get(key) != 0 for key in _LEARNED) else {"learned": False}
        messages.append({"role": roles[role], "content": content or "", **learned})
    return messages


def _alpaca(row: Any, form: Form) -> list[Any]:
    prompt, query, response, history = (form.get(name) for name in ("prompt", "query", "response", "history"))
    turns = _listed(row.get(history) or [], str(history))
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise YiTuneError("{history} is not a list of pairs", history=history)
    asked = [text for text in (row.get(prompt), row.get(query)) if text]
    if not all(isinstance(text, str) for text in asked):
        raise YiTuneError("{prompt} or {query} is not text", prompt=prompt, query=query)
    pairs = [*turns, ("\n".join(asked), row.get(response))]
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
