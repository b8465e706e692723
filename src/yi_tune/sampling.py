"""How a reply is drawn from the model, and what drawing it took."""

from dataclasses import dataclass
from typing import Any

from yi_tune.errors import YiTuneError


@dataclass(frozen=True)
class Sampling:
    """Generation parameters; the defaults are greedy, so the same question has the same answer.

    Raises YiTuneError for a value out of range, before a model is loaded for it.
    """

    temperature: float = 0.0
    top_p: float = 0.8
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024
    seed: int | None = None

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        ranges = {
            "--temperature": (self.temperature, 0 <= self.temperature <= 10, "0 (greedy) to 10"),
            "--top-p": (self.top_p, 0 < self.top_p <= 1, "above 0, up to 1"),
            "--repetition-penalty": (
                self.repetition_penalty,
                0 < self.repetition_penalty <= 10,
                "above 0, up to 10",
            ),
            "--seed": (self.seed, self.seed is None or 0 <= self.seed < 2**63, "0 or more, below 2**63"),
            "--max-new-tokens": (self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
        }
        if wrong := [
            f"{option} {value} (takes {range_})" for option, (value, fine, range_) in ranges.items() if not fine
        ]:
            raise YiTuneError(f"Out of range: {', '.join(wrong)}.", "For example: --temperature 0.7 --top-p 0.8")

    def options(self) -> dict[str, Any]:
        """As keywords of transformers' `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "repetition_penalty": self.repetition_penalty}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,  # none: transformers' own is 50, which nobody has asked for
            "repetition_penalty": self.repetition_penalty,
        }


@dataclass(frozen=True)
class ReplyStats:
    """What a reply took: tokens of the prompt, how many of them were in the cache, tokens of the reply, seconds to
    its first token and to its end.
    """

    prompt_tokens: int
    cached_tokens: int
    tokens: int
    first_token_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """How fast the tokens after the first one came; 0 where there is none."""
        took = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / took if self.tokens > 1 and took > 0 else 0.0
