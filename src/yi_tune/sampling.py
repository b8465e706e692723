"""How a reply is drawn from the model, how its text comes out of its tokens, and what it took. Imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from gettext import gettext as _
from random import Random
from typing import Any, Literal, NamedTuple

from tokenizers.decoders import DecodeStream

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
    top_k: int = 0  # 0 and -1: all

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        for name, fine, takes in (
            ("temperature", 0 <= self.temperature <= 2, _("0 (greedy) to 2")),
            ("top_p", 0 < self.top_p <= 1, _("above 0, up to 1")),
            ("repetition_penalty", 0 < self.repetition_penalty <= 10, _("above 0, up to 10")),
            ("max_new_tokens", self.max_new_tokens >= 1, _("1 or more")),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, _("0 or more, below 2**63")),
            ("top_k", self.top_k >= -1, _("1 or more; 0 or -1 for all")),
        ):
            if not fine:
                said = _("Out of range: {name} {value} (takes {takes}).").format(
                    name=name, value=getattr(self, name), takes=takes
                )
                raise YiTuneError(said, "For example: temperature 0.7 and top_p 0.8.")


@dataclass(eq=False)
class Generation:
    """A reply in the making: token ids come in, whole characters go out, up to the first of the `stop` strings.

    `emit` is called in the engine's thread with each piece of text, and with "" once `finish` says why the reply ends.
    Setting `cancelled` ends the reply at the next step. `tokens` ends with the token that ended the reply.
    """

    prompt: list[int]
    sampling: Sampling
    emit: Callable[[str], None] = lambda _: None
    base: bool = False
    stop: Sequence[str] = ()
    cancelled: bool = False
    begun: bool = False
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Literal["stop", "length", "error"] | None = None

    def __post_init__(self) -> None:
        self.random = Random(self.sampling.seed)  # noqa: S311 (None seeds from the system)
        self._decoder = DecodeStream([], True)
        self._held = ""

    @property
    def over(self) -> bool:
        """Whether no more tokens are wanted."""
        return self.cancelled or self.finish is not None

    def take(self, token: int, tokenizer: Any, ends: Sequence[int]) -> None:
        """Take the next token and pass on its text. A character of which not all bytes have come is held back."""
        self.tokens.append(token)
        if token in ends:
            self.finish = "stop"
        else:
            self._held += self._decoder.step(tokenizer.backend_tokenizer, token) or ""
            if found := [at for stop in self.stop if (at := self._held.find(stop)) >= 0]:
                self.finish, self._held = "stop", self._held[: min(found)]
            elif len(self.tokens) == self.sampling.max_new_tokens:
                self.finish = "length"
        # The last characters may begin a stop string.
        kept = 0 if self.finish else max(map(len, self.stop), default=1) - 1
        ready = max(len(self._held) - kept, 0)
        if piece := self._held[:ready]:
            self._held = self._held[ready:]
            self.text += piece
            self.emit(piece)
        if self.finish:
            self.emit("")

    def fail(self) -> None:
        """End the reply, which cannot be made."""
        self.finish = "error"
        self.emit("")


class ReplyStats(NamedTuple):
    """What a reply took, in tokens and seconds; `cached_tokens` are those of the prompt that were not read again."""

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
