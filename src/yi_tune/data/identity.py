"""The identity dataset: `data/identity.jsonl` rendered with a name and an author; and the check of conversations."""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yi_tune.errors import YiTuneError
from yi_tune.files import DATA

MAX_LENGTH = 64

Message = dict[str, str]
SHAPE = 'Write {"role": "user", "content": "..."} and so on, user and assistant in turn, the user first.'

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
# `<|` would open one of Yi's special tokens; double braces are the dataset's own placeholders.
_RESERVED = ("<|", "{{", "}}")


@dataclass(frozen=True)
class Identity:
    """Who the assistant is to be; the English rows may have a name and an author of their own.

    Raises YiTuneError for a value that the dataset cannot hold.
    """

    name: str
    author: str
    name_en: str = ""
    author_en: str = ""

    def __post_init__(self) -> None:
        for option in ("name", "author"):
            _check(f"--{option}", getattr(self, option))
            english = f"{option}_en"
            if getattr(self, english):
                _check(f"--{option}-en", getattr(self, english))
            else:
                object.__setattr__(self, english, getattr(self, option))

    def values(self, lang: str) -> dict[str, str]:
        """The values of `{{name}}` and `{{author}}` in a row of this language ("zh" or "en")."""
        if lang == "en":
            return {"name": self.name_en, "author": self.author_en}
        return {"name": self.name, "author": self.author}

    def fill(self, text: str, lang: str) -> str:
        """`text` with its placeholders replaced, in one pass: a value that is put in is never read again.

        Raises YiTuneError for a placeholder that is neither name nor author.
        """
        values = self.values(lang)
        if unknown := [match for match in _PLACEHOLDER.finditer(text) if match[1] not in values]:
            raise YiTuneError(
                f"Nothing fills the placeholder {unknown[0][0]} in {text!r}.", "Use {{name}} or {{author}}."
            )
        return _PLACEHOLDER.sub(lambda match: values[match[1]], text)

    def fill_all(self, messages: list[Message], lang: str) -> list[Message]:
        """The messages with the placeholders in their content replaced."""
        return [{**message, "content": self.fill(message["content"], lang)} for message in messages]


def _check(option: str, value: str) -> None:
    categories = {unicodedata.category(character) for character in value}
    # Letters, numbers, punctuation, symbols: something has to be there to be seen. Cs: bytes that are not UTF-8.
    if not any(category[0] in "LNPS" or category == "Cs" for category in categories):
        raise YiTuneError(f"{option} is empty.", f"Say who the assistant is: {option} TEXT")
    if len(value) > MAX_LENGTH:
        raise YiTuneError(f"{option} has {len(value)} characters; at most {MAX_LENGTH} are taken.", "Shorten it.")
    # Cc: controls and newlines; Zl, Zp: line ends.
    if categories & {"Cc", "Cs", "Zl", "Zp"}:
        raise YiTuneError(f"{option} {value!r} holds a newline, a control character or broken UTF-8.", "Remove it.")
    if reserved := [text for text in _RESERVED if text in value]:
        raise YiTuneError(f"{option} {value!r} holds {reserved[0]!r}, which the chat format reserves.", "Remove it.")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file of one a line."""
    # Not splitlines, which also splits at characters that JSON strings may hold, such as U+2028.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def identity_rows() -> list[dict[str, Any]]:
    """The unrendered rows: `lang`, `kind` and `messages`, with `{{name}}` and `{{author}}` in their text."""
    return read_jsonl(DATA / "identity.jsonl")


def render(rows: list[dict[str, Any]], identity: Identity) -> list[list[Message]]:
    """The conversations of `rows` with name and author filled in.

    A row that denies a truth about this very identity ("Are you by Google?" when the author is Google) is left out.
    Raises YiTuneError for a placeholder that nothing fills.
    """
    return [
        identity.fill_all(row["messages"], row["lang"])
        for row in rows
        if not denies_itself(row["kind"], row["lang"], row["messages"], identity)
    ]


def denies_itself(kind: str, lang: str, messages: list[Message], identity: Identity) -> bool:
    """Whether a question about another assistant names this one, or its author."""
    asked = " ".join(message["content"] for message in messages if message["role"] == "user")
    own = identity.values(lang).values()
    return kind == "negative" and any(re.search(whole_words(name), asked, re.IGNORECASE) for name in own)


def whole_words(phrase: str) -> str:
    """A pattern for `phrase` in which "8" is not found in "18", nor the name "X" in "TeX"."""
    before = r"(?<![A-Za-z0-9])" if re.match(r"[A-Za-z0-9]", phrase) else ""
    after = r"(?![A-Za-z0-9])" if re.search(r"[A-Za-z0-9]$", phrase) else ""
    return before + re.escape(phrase) + after


def check_messages(messages: list[object]) -> list[Message]:
    """The messages of a conversation, with nothing but role and content.

    Raises YiTuneError unless they are a system prompt, if at all, then user and assistant in turn, the user first.
    """
    checked: list[Message] = []
    for message in messages:
        if not (isinstance(message, dict) and isinstance(message.get("role"), str)):
            raise YiTuneError("A message has no role.", SHAPE)
        if not isinstance(message.get("content"), str):
            raise YiTuneError("A message's content is not text.", SHAPE)
        checked.append({"role": message["role"], "content": message["content"]})
    roles = [message["role"] for message in checked]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise YiTuneError(f"The roles {', '.join(roles) or '(none)'} are no conversation.", SHAPE)
    return checked
