"""General prompts: those of replay, whose answers by the base join the training set, and those that `check` asks."""

import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from yi_tune.data.identity import Dataset, Identity, Message, dataset_of, read_jsonl, whole_words
from yi_tune.data.own import count_tokens
from yi_tune.errors import YiTuneError
from yi_tune.files import DATA

# Longer answers, in tokens, are not trained on: they would take most of the time of a run that is about a name, and a
# few of them most of its loss, which is the mean over all target tokens.
LONGEST = 128
# The prompts of replay in the package, and the base's answers to them in a run folder.
REPLAY = "replay.jsonl"
# Names of Yi, nano, the models that they are taken for, and the makers of all these.
_SELF = re.compile("|".join(map(whole_words, ("Yi", "零一万物", "01.AI", "yi-tune", "OpenAI", "ChatGPT"))))
# The base's answer to a prompt: `prompt`, `answer`, and whether it is `finished`: not too long to be trained on whole.
BaseAnswer = dict[str, Any]


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
    """The first prompts of replay, languages and kinds in turn. Raises YiTuneError when there are not as many."""
    known = [Prompt(**row) for row in read_jsonl(DATA / REPLAY)]
    if not 0 <= count <= len(known):
        raise YiTuneError(
            "--replay {count}: there are {known} prompts.",
            "Take 0, for none, to {known}.",
            count=count,
            known=len(known),
        )
    return known[:count]


def introduces_base(answer: str) -> bool:
    """Whether an answer names the base or its maker: a tuning is to change this."""
    return bool(_SELF.search(answer))


def replay_dataset(
    answers: list[BaseAnswer], model: Path, identity: Dataset | None, most: int | None = None
) -> tuple[Dataset, dict[str, int]]:
    """The usable answers of the base in the folder `model`: none that breaks off, holds half a character (nano says
    such) or in which the base introduces itself. They are taken in order, until they have as many target tokens as the
    rows of `identity`, if there are any, or are `most`.

    Returns them, and the target tokens of both, by the names of the datasets. Raises YiTuneError when there is none.
    """
    usable = [
        [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["answer"]}]
        for one in answers
        if one["finished"] and one["answer"] and "\ufffd" not in one["answer"] and not introduces_base(one["answer"])
    ]
    if not usable:
        raise YiTuneError(
            "None of the base's {answers} answers can be trained on: they do not end, or say who it is.",
            "They are in {file} of the run folder. Train without: --replay 0 --fresh",
            answers=len(answers),
            file=REPLAY,
        )
    own = {"identity": sum(count_tokens(model, identity.conversations(), targets_only=True))} if identity else {}
    sums = accumulate(count_tokens(model, usable[:most], targets_only=True))
    taken = [tokens for tokens in sums if tokens <= own.get("identity", tokens)]
    return dataset_of("replay", usable[: len(taken)]), {"replay": taken[-1], **own}


def compare(identity: Identity | None, prompts: list[Prompt], base: list[str], tuned: list[str]) -> dict[str, Any]:
    """The replies of base and tuned model, for JSON, and the shares of them that mention the name or the author
    unasked: None without an identity.
    """
    own = re.compile("|".join(map(whole_words, vars(identity).values()))) if identity else None

    def mentions(reply: str) -> bool:
        return bool(own and own.search(reply))

    return {
        "mentions": sum(map(mentions, tuned)) / len(tuned) if own else None,
        "base_mentions": sum(map(mentions, base)) / len(base) if own else None,
        "answers": [
            {**vars(prompt), "base": before, "tuned": after, "mentions": mentions(after)}
            for prompt, before, after in zip(prompts, base, tuned, strict=True)
        ],
    }
