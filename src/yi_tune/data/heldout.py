"""Does it know who it is? The held-out questions of `data/heldout.jsonl`, and how a reply is scored."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from yi_tune.data.identity import Identity, Message, denies_itself, read_jsonl, whole_words
from yi_tune.files import DATA

Ask = Callable[[list[list[Message]]], list[str]]
# The shares of right answers and the answers themselves, for JSON; a share of no questions is None.
Score = dict[str, Any]


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


def score(asked: list[Question], identity: Identity | None, ask_base: Ask, ask_tuned: Ask) -> Score:
    """Ask base and tuned model the same questions, but those that would have the assistant deny itself; without an
    identity, the plain ones.

    `recall` is the share of identity questions that are answered right, `leak` that of plain answers that mention the
    name, and `kept` that of plain questions that the tuned model still answers right, of those that the base does.
    """
    if identity is None:
        asked = [one for one in asked if one.plain]
    else:
        asked = [one for one in asked if not denies_itself(one.kind, one.lang, one.messages, identity)]
    conversations = [identity.fill_all(one.messages, one.lang) if identity else one.messages for one in asked]
    replies = zip(asked, ask_base(conversations), ask_tuned(conversations), strict=True)
    answers = [_judge(one, identity, base, tuned) for one, base, tuned in replies]
    plain, known = ([answer for answer in answers if (answer["kind"] == "plain") is plain] for plain in (True, False))
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for answer in answers:
        kinds.setdefault((answer["lang"], answer["kind"]), []).append(answer)
    return {
        "identity": vars(identity) if identity else {},
        "recall": _share(answer["right"] for answer in known),
        "recall_zh": _share(answer["right"] for answer in known if answer["lang"] == "zh"),
        "recall_en": _share(answer["right"] for answer in known if answer["lang"] == "en"),
        "base_recall": _share(answer["base_right"] for answer in known),
        "leak": _share(answer["leaks"] for answer in plain if identity),
        "kept": _share(answer["right"] for answer in plain if answer["base_right"]),
        "kinds": [
            {"lang": lang, "kind": kind, "asked": len(same)}
            | {"base": sum(answer["base_right"] for answer in same), "tuned": sum(answer["right"] for answer in same)}
            for (lang, kind), same in kinds.items()
        ],
        "answers": answers,
    }


def _judge(one: Question, identity: Identity | None, base: str, tuned: str) -> dict[str, Any]:
    return {
        **{"lang": one.lang, "kind": one.kind, "messages": one.messages, "base": base, "tuned": tuned},
        **{"base_right": one.right(base, identity), "right": one.right(tuned, identity)},
        "leaks": one.plain and identity is not None and one.mentions(tuned, "{{name}}", identity),
    }


def _share(hits: Iterable[bool]) -> float | None:
    counted = list(hits)
    return sum(counted) / len(counted) if counted else None


def lowest_recall(score: Score) -> float | None:
    """The recall of the language that has the lower one."""
    return min((score[key] for key in ("recall_zh", "recall_en") if score[key] is not None), default=None)
