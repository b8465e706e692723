"""General prompts, which have nothing to do with who the assistant is: the lists that replay and `check` ask."""

import re
from dataclasses import dataclass

from yi_tune.data.identity import Message, read_jsonl, whole_words
from yi_tune.resources import DATA

# What Yi, nano and the models that others are taken for call themselves and their makers.
_SELVES = ("Yi", "零一万物", "01.AI", "yi-tune", "OpenAI", "ChatGPT")
_SELF = re.compile("|".join(map(whole_words, _SELVES)))


@dataclass(frozen=True)
class Prompt:
    """A prompt in the language `lang` ("zh" or "en") and what kind of task it is."""

    lang: str
    kind: str
    prompt: str

    @property
    def messages(self) -> list[Message]:
        """The conversation that it is."""
        return [{"role": "user", "content": self.prompt}]


def replay_prompts() -> list[Prompt]:
    """What replay asks, in an order in which languages and kinds take turns: the first N are a spread of all."""
    return [Prompt(**row) for row in read_jsonl(DATA / "replay.jsonl")]


def check_prompts() -> list[Prompt]:
    """What `check` asks; replay asks none of it."""
    return [Prompt(**row) for row in read_jsonl(DATA / "general.jsonl")]


def introduces_base(answer: str) -> bool:
    """Whether an answer names the base or its maker: who it was is what a tuning is to change."""
    return bool(_SELF.search(answer))
