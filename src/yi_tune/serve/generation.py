"""What the API asks of an engine, and what comes back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from yi_tune.data.identity import Message


class QueueFullError(Exception):
    """The engine has as many replies running and waiting as it takes."""


@dataclass(frozen=True)
class Piece:
    """Some text of a reply; `tokens` is how many it has taken so far. The last piece says why it ends."""

    text: str
    tokens: int
    finish: Literal["stop", "length", "error"] | None = None


@dataclass(eq=False)
class Generation:
    """One reply asked for. `emit` is called in the engine's thread; setting `cancelled` ends it at the next step.
    Without `stream` it is called once, with the whole text: every call takes the interpreter from the engine's thread.

    The parameters are OpenAI's: temperature 0 is greedy, the penalties are taken from the logits of tokens that
    the reply has already (`frequency_penalty` as often as they are in it).
    """

    prompt: list[int]
    max_new_tokens: int
    emit: Callable[[Piece], None]
    base: bool = False
    stream: bool = True
    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: str | None = None
    stop: tuple[str, ...] = ()
    cancelled: bool = False


class Engine(Protocol):
    """What makes the replies."""

    context: int
    """The model's, in tokens."""
    capacity: int
    """How many replies are made and wait at the most."""

    @property
    def running(self) -> int:
        """How many replies are being made."""

    @property
    def waiting(self) -> int:
        """How many wait their turn."""

    @property
    def alive(self) -> bool:
        """Whether replies are being made at all."""

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Token ids of the conversation up to where the assistant's reply begins."""

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text as it is."""

    def submit(self, generations: Sequence[Generation]) -> None:
        """Begin all of them as soon as there is room. Raises QueueFullError, and begins none, when there won't be."""
