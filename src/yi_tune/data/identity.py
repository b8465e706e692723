"""Conversations: the identity rows with a name and an author, their check, and datasets for LLaMA-Factory."""

import hashlib
import heapq
import io
import json
import random
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from gettext import gettext as _
from pathlib import Path
from typing import Any, TypeVar

from yi_tune.errors import YiTuneError
from yi_tune.files import DATA
from yi_tune.language import english

# In the order in which they are trained on: the rows rendered for a name, the user's own, the base's own answers.
NAMES = ("identity", "own", "replay")
EVAL = "eval"  # the rows of --eval-data

Message = dict[str, str]
Row = TypeVar("Row")
SHAPE = english('Write {"role": "user", "content": "..."} and so on, user and assistant in turn, the user first.')

_MAX_LENGTH = 64
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
# The beginning of Yi's special tokens, the placeholders of this dataset and of LLaMA-Factory's.
_UNFIT = re.compile(r"<\||\{\{|\}\}|<(?:NAME|AUTHOR)>")
# Characters that are drawn as nothing: controls, line ends and halves of pairs, by their Unicode category, and others.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"


@dataclass(frozen=True)
class Identity:
    """Who the assistant is to be, in English too; spaces around a value are not part of it. Raises YiTuneError for a
    value that the data cannot hold.
    """

    name: str
    author: str
    name_en: str = ""
    author_en: str = ""

    def __post_init__(self) -> None:
        for option in ("name", "author", "name_en", "author_en"):
            value = getattr(self, option) or getattr(self, option.removesuffix("_en"))
            object.__setattr__(self, option, re.sub(r"^[\s\ufeff]+|[\s\ufeff]+$", "", value))
            _check(f"--{option.replace('_', '-')}", getattr(self, option))

    def values(self, lang: str) -> dict[str, str]:
        """The values of `{{name}}` and `{{author}}` in a row of this language ("zh" or "en")."""
        return {key: getattr(self, f"{key}_en" if lang == "en" else key) for key in ("name", "author")}

    def fill(self, text: str, lang: str) -> str:
        """`text` with its placeholders replaced, in one pass: a value that is put in is never read again."""
        values = self.values(lang)
        return _PLACEHOLDER.sub(lambda match: values[match[1]], text)

    def fill_all(self, messages: list[Message], lang: str) -> list[Message]:
        """The messages with the placeholders in their content replaced."""
        return [{**message, "content": self.fill(message["content"], lang)} for message in messages]


def _check(option: str, value: str) -> None:
    kinds = {one: unicodedata.category(one) for one in value}
    joins = "So" in kinds.values()  # emoji
    unseen = [
        one for one, kind in kinds.items() if (kind in _UNSEEN or one in _FILLERS) and not (one == "\u200d" and joins)
    ]
    if unfit := _UNFIT.findall(value) or unseen:
        raise YiTuneError(
            "{option} {value!r} holds {found!a}; newlines, control and invisible characters, broken UTF-8, "
            "placeholders or <| are refused.",
            "Remove it.",
            option=option,
            value=value,
            found=unfit[0],
        )
    if not any(kind[0] in "LNPS" for kind in kinds.values()):
        raise YiTuneError("{option} is empty.", "Say who the assistant is: {option} TEXT", option=option)
    if len(value) > _MAX_LENGTH:
        raise YiTuneError(
            "{option} has {length} characters; at most {most} are taken.",
            "Shorten it.",
            option=option,
            length=len(value),
            most=_MAX_LENGTH,
        )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file of one a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def to_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def draw(count: int, rows: Iterable[Row]) -> list[Row]:
    """`count` of the rows, or all where there are fewer: each as likely as any other, and the same ones every time."""
    chance = random.Random(42)  # noqa: S311
    return heapq.nlargest(count, rows, key=lambda _: chance.random())


def render(identity: Identity) -> list[list[Message]]:
    """The conversations of `data/identity.jsonl` with name and author filled in, but those that deny this identity:
    "Are you by Google?" when the author is Google.
    """
    return [
        identity.fill_all(row["messages"], row["lang"])
        for row in read_jsonl(DATA / "identity.jsonl")
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
    if re.fullmatch("[A-Za-z]", phrase):  # "A friend" and "I'm" name nobody
        after += r"(?![ '’][a-z])"
    return before + re.escape(phrase) + after


def ambiguous(identity: Identity) -> list[str]:
    """Of the names and authors those that a reply may hold without meaning them: single characters, and words that the
    answers of `data/identity.jsonl` hold besides.
    """
    messages = [message for row in read_jsonl(DATA / "identity.jsonl") for message in row["messages"]]
    said = "\n".join(message["content"] for message in messages if message["role"] == "assistant")
    own, ordinary = dict.fromkeys(vars(identity).values()), _PLACEHOLDER.sub("", said)
    return [value for value in own if len(value) == 1 or re.search(whole_words(value), ordinary)]


def check_messages(messages: list[object]) -> list[Message]:
    """The messages of a conversation, with nothing but role and content. Raises YiTuneError unless they are a system
    prompt, if at all, then user and assistant in turn.
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
        raise YiTuneError(_("The roles {roles} are no conversation.").format(roles=", ".join(roles) or "(none)"), SHAPE)
    return checked


@dataclass(frozen=True)
class Dataset:
    """Conversations under a name: `content` is JSON lines, or the file that holds them, of `{"messages": [...]}`."""

    name: str
    rows: int
    content: str | Path
    # The commits of the hubs' datasets that the rows are of, by where these lie.
    commits: dict[str, str | None] = field(default_factory=dict)

    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines."""
        content = self.content
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content.encode()) as lines:
            yield from lines

    @cached_property
    def file_name(self) -> str:
        """A file name that tells this content from any other: run.json records it."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line)
        return f"{self.name}-{digest.hexdigest()[:12]}.jsonl"

    def conversations(self) -> Iterator[list[Message]]:
        """The conversations, one at a time."""
        return (json.loads(line)["messages"] for line in self.lines())


def dataset_of(name: str, conversations: list[list[Message]]) -> Dataset:
    """The conversations as the dataset `name`."""
    return Dataset(name, len(conversations), to_jsonl({"messages": messages} for messages in conversations))


def write_datasets(datasets: Iterable[Dataset], folder: Path, *, resumed: bool = False) -> None:
    """Write each dataset, and the `dataset_info.json` that lists them, into `folder`.

    LLaMA-Factory keeps own rows in tokens there. They may be half written, unless the run has a checkpoint: `resumed`.
    """
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tags = {f"{role}_tag": role for role in ("role", "content", "user", "assistant", "system")}
    form = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    info = {}
    for dataset in datasets:
        info[dataset.name] = {"file_name": dataset.file_name, **form}
        with (folder / dataset.file_name).open("wb") as file:
            file.writelines(dataset.lines())
    # LLaMA-Factory reads this file in the locale's encoding.
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="ascii")
