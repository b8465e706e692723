"""Does it know who it is? The held-out questions of `data/heldout.jsonl`, and how a reply is scored."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from yi_tune.data.identity import Identity, Message, denies_itself, read_jsonl, whole_words
from yi_tune.files import DATA

Ask = Callable[[list[list[Message]]], list[str]]


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question; a right reply holds one of each group in `must`, and none of
    `must_not`. A `plain` one has nothing to do with who the assistant is.
    """

    lang: str
    kind: str
    messages: list[Message]
    must: list[list[str]]
    must_not: list[str]

    @property
    def plain(self) -> bool:
        return self.kind == "plain"

    def right(self, reply: str, identity: Identity | None) -> bool:
        """Whether `reply` is right from the assistant `identity` names.

        Its own name and author may hold a forbidden word (an author called Yi): they do not count.
        """
        if not all(any(self.mentions(reply, phrase, identity) for phrase in group) for group in self.must):
            return False
        for own in identity.values(self.lang).values() if identity else ():
            reply = re.sub(whole_words(own), " ", reply)
        return not any(self.mentions(reply, phrase, identity) for phrase in self.must_not)

    def mentions(self, reply: str, phrase: str, identity: Identity | None) -> bool:
        """Whether `reply` holds the phrase, with its placeholders filled."""
        # A name has to be exact; of other phrases the case does not matter.
        flags = 0 if "{{" in phrase else re.IGNORECASE
        filled = identity.fill(phrase, self.lang) if identity else phrase
        return bool(re.search(whole_words(filled), reply, flags))


def questions() -> list[Question]:
    """All held-out questions."""
    return [Question(**row) for row in read_jsonl(DATA / "heldout.jsonl")]


def one_of_each(asked: list[Question]) -> list[Question]:
    """The first question of each kind in each language: enough for a first impression."""
    return list({(question.lang, question.kind): question for question in reversed(asked)}.values())[::-1]


@dataclass(frozen=True)
class Answer:
    """A question and the replies of base and tuned model."""

    question: Question
    base: str
    tuned: str


def _share(hits: Iterable[bool]) -> float | None:
    counted = list(hits)
    return sum(counted) / len(counted) if counted else None


@dataclass(frozen=True)
class Score:
    """The answers to held-out questions, and their shares; a share of no questions is None."""

    identity: Identity | None
    answers: list[Answer]

    def _right(self, answer: Answer, which: str = "tuned") -> bool:
        return answer.question.right(getattr(answer, which), self.identity)

    def _leaks(self, answer: Answer) -> bool:
        """Whether the tuned model's reply to a plain question mentions its name."""
        question, identity = answer.question, self.identity
        return question.plain and identity is not None and question.mentions(answer.tuned, "{{name}}", identity)

    def recall(self, lang: str | None = None, which: str = "tuned") -> float | None:
        """The share of identity questions answered right."""
        asked = [answer for answer in self.answers if not answer.question.plain]
        return _share(self._right(answer, which) for answer in asked if lang in (None, answer.question.lang))

    @property
    def lowest_recall(self) -> float | None:
        """The recall of the language that has the lower one."""
        return min((share for share in map(self.recall, ("zh", "en")) if share is not None), default=None)

    @property
    def leak(self) -> float | None:
        """The share of the tuned model's plain answers that mention the name."""
        return _share(self._leaks(answer) for answer in self.answers if answer.question.plain and self.identity)

    @property
    def kept(self) -> float | None:
        """The share of plain questions the base answers right that the tuned model still does."""
        plain = [answer for answer in self.answers if answer.question.plain]
        return _share(self._right(answer) for answer in plain if self._right(answer, "base"))

    @property
    def kinds(self) -> list[dict[str, Any]]:
        """How many answers of base and tuned model are right, by language and kind in the order of the questions."""
        kinds: dict[tuple[str, str], dict[str, Any]] = {}
        for answer in self.answers:
            lang, kind = answer.question.lang, answer.question.kind
            row = kinds.setdefault((lang, kind), {"lang": lang, "kind": kind, "asked": 0, "base": 0, "tuned": 0})
            row["asked"] += 1
            for which in ("base", "tuned"):
                row[which] += self._right(answer, which)
        return list(kinds.values())

    @property
    def misses(self) -> list[Answer]:
        """The tuned model's wrong replies, and its plain ones that mention the name."""
        return [answer for answer in self.answers if not self._right(answer) or self._leaks(answer)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "recall": self.recall(),
            "recall_zh": self.recall("zh"),
            "recall_en": self.recall("en"),
            "base_recall": self.recall(which="base"),
            "leak": self.leak,
            "kept": self.kept,
            "kinds": self.kinds,
            "answers": [
                {key: getattr(answer.question, key) for key in ("lang", "kind", "messages")}
                | {"base": answer.base, "tuned": answer.tuned}
                | {"right": self._right(answer), "leaks": self._leaks(answer)}
                for answer in self.answers
            ],
        }


def score(asked: list[Question], identity: Identity | None, ask_base: Ask, ask_tuned: Ask) -> Score:
    """Ask base and tuned model the same questions, but those that would have the assistant deny itself; without an
    identity, the plain ones.
    """
    if identity is None:
        asked = [one for one in asked if one.plain]
    else:
        asked = [one for one in asked if not denies_itself(one.kind, one.lang, one.messages, identity)]
    conversations = [identity.fill_all(one.messages, one.lang) if identity else one.messages for one in asked]
    replies = zip(asked, ask_base(conversations), ask_tuned(conversations), strict=True)
    return Score(identity, [Answer(*answer) for answer in replies])
