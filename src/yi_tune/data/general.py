"""General prompts, which have nothing to do with who the assistant is: those whose answers by the base join the
training set (replay), so that it keeps its knowledge, and those that `check` asks.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yi_tune.data.dataset import Dataset, dataset_of
from yi_tune.data.identity import Identity, Message, read_jsonl, whole_words
from yi_tune.errors import YiTuneError
from yi_tune.files import DATA, write_whole

# Longer answers, in tokens, are not trained on: they would take most of the time of a run that is about a name.
LONGEST = 512
_FILE = "replay.jsonl"
# Names of Yi, nano, the models that they are taken for, and the makers of all these.
_SELVES = ("Yi", "零一万物", "01.AI", "yi-tune", "OpenAI", "ChatGPT")
_SELF = re.compile("|".join(map(whole_words, _SELVES)))


@dataclass(frozen=True)
class Prompt:
    """A prompt in the language `lang` ("zh" or "en") and its kind of task."""

    lang: str
    kind: str
    prompt: str

    @property
    def messages(self) -> list[Message]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.prompt}]


def check_prompts() -> list[Prompt]:
    """The prompts of `check`; replay asks none of them."""
    return [Prompt(**row) for row in read_jsonl(DATA / "general.jsonl")]


def replay_prompts(count: int) -> list[Prompt]:
    """The first `count` prompts of replay, in whose order languages and kinds take turns. Raises YiTuneError when
    there are not as many.
    """
    known = [Prompt(**row) for row in read_jsonl(DATA / _FILE)]
    if not 0 <= count <= len(known):
        raise YiTuneError(f"--replay {count}: there are {len(known)} prompts.", f"Take 0, for none, to {len(known)}.")
    return known[:count]


def introduces_base(answer: str) -> bool:
    """Whether an answer names the base or its maker: a tuning is to change this."""
    return bool(_SELF.search(answer))


@dataclass(frozen=True)
class BaseAnswer:
    """The base's answer to a prompt; not `finished` when it was too long to be trained on whole."""

    prompt: str
    answer: str
    finished: bool

    @property
    def usable(self) -> bool:
        """Whether to train on it: not on an answer that breaks off or holds half a character, which nano may say and
        no tokenizer gives back, nor on one in which the base introduces itself.
        """
        return self.finished and bool(self.answer) and "\ufffd" not in self.answer and not introduces_base(self.answer)


def kept_answers(run: Path) -> list[BaseAnswer] | None:
    """The answers in the run folder; None when the base has not been asked, or not to the end."""
    return [BaseAnswer(**row) for row in read_jsonl(run / _FILE)] if (run / _FILE).exists() else None


def keep_answers(run: Path, answers: list[BaseAnswer]) -> None:
    """Keep all answers, the unusable ones too, in the run folder: a resumed run trains on the same."""
    write_whole(run / _FILE, "".join(json.dumps(vars(answer), ensure_ascii=False) + "\n" for answer in answers))


def replay_dataset(answers: list[BaseAnswer]) -> Dataset:
    """The usable ones as a dataset. Raises YiTuneError when there is none."""
    usable = [
        [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.answer}]
        for answer in answers
        if answer.usable
    ]
    if not usable:
        raise YiTuneError(
            f"None of the base's {len(answers)} answers can be trained on: they do not end, or say who it is.",
            f"They are in {_FILE} of the run folder. Train without: --replay 0 --fresh",
        )
    return dataset_of("replay", usable)


@dataclass(frozen=True)
class Forgetting:
    """The replies of base and tuned model to general prompts, for changes that the tuning was not about.

    `kl` is the mean D_KL(tuned || base) in nats a token over the base's answers (engine/divergence.py), but those in
    which it introduces itself; None when it does so in all. `identity` is None for a run that was given none.
    """

    identity: Identity | None
    prompts: list[Prompt]
    base: list[str]
    tuned: list[str]
    kl: float | None

    def mentions(self, reply: str) -> bool:
        """Whether a reply names the identity or its author, in either language."""
        own = vars(self.identity).values() if self.identity else ()
        return any(re.search(whole_words(name), reply) for name in own)

    def share(self, which: str = "tuned") -> float | None:
        """The share of replies that name the identity, which nobody asked for; None without an identity."""
        replies: list[str] = getattr(self, which)
        return sum(map(self.mentions, replies)) / len(replies) if self.identity and replies else None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "kl": self.kl,
            "mentions": self.share(),
            "base_mentions": self.share("base"),
            "answers": [
                {**vars(prompt), "base": base, "tuned": tuned, "mentions": self.mentions(tuned)}
                for prompt, base, tuned in zip(self.prompts, self.base, self.tuned, strict=True)
            ],
        }
