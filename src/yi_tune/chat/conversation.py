"""A conversation with the model: what was said, who answers, and how replies are drawn."""

from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yi_tune.data.identity import Message
from yi_tune.errors import YiTuneError
from yi_tune.sampling import Sampling

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

Pieces = Generator[str]


@dataclass
class Conversation:
    """The messages so far; the last one of `turns` is the user's while it has no answer.

    `base`: the base answers, not the tuned model. `note` is told once when the model's context is full and the oldest
    turns are no longer sent; `left_out` counts them, a message and its reply as one.
    """

    assistant: "Assistant"
    sampling: Sampling
    system: str | None = None
    base: bool = False
    note: Callable[[str], None] = lambda _: None
    turns: list[Message] = field(default_factory=list)
    left_out: int = 0

    @property
    def system_message(self) -> list[Message]:
        """The system prompt as a message, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system else []

    @property
    def messages(self) -> list[Message]:
        """All of it: the system prompt if there is one, and the turns."""
        return [*self.system_message, *self.turns]

    @property
    def unanswered(self) -> bool:
        """Whether the last message got no reply, for `retry`."""
        return bool(self.turns) and self.turns[-1]["role"] == "user"

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns, self.left_out = [], 0

    def replace(self, messages: list[Message]) -> None:
        """Go on from these messages, as `check_messages` returns them."""
        self.clear()
        self.system = messages[0]["content"] if messages[0]["role"] == "system" else None
        self.turns = [message for message in messages if message["role"] != "system"]

    def say(self, text: str) -> Pieces:
        """Answer `text`, piece by piece, in the place of a message that got no reply.

        An answer stopped halfway is kept as far as it came.
        """
        self.turns = [*self.turns[: -1 if self.unanswered else None], {"role": "user", "content": text}]
        return self._answer()

    def retry(self) -> Pieces:
        """Answer the last message again; the new answer takes the old one's place once it is there.

        Raises YiTuneError when there is no message.
        """
        self.last_message()
        return self._answer()

    def last_message(self) -> str:
        """What was asked last. Raises YiTuneError when nothing was."""
        if not self.turns:
            raise YiTuneError("There is no message to answer.", "Type one.")
        return self._asked()[-1]["content"]

    def undo(self) -> str:
        """Take the last turn back; returns its message. Raises YiTuneError when there is none."""
        if not self.turns:
            raise YiTuneError("There is nothing to take back.")
        *self.turns, last = self._asked()
        self.left_out = 0  # there is room again
        return last["content"]

    def other(self) -> Pieces:
        """What the one that does not answer here, base or tuned, says to the last message; it is not kept."""
        return self._stream(self._asked(), base=not self.base)

    def _asked(self) -> list[Message]:
        """The turns up to the last message of the user's."""
        return self.turns if self.unanswered else self.turns[:-1]

    def _answer(self) -> Pieces:
        asked = self._asked()
        pieces: list[str] = []
        whole = False
        try:
            with closing(self._stream(asked, base=self.base)) as stream:
                for piece in stream:
                    pieces.append(piece)
                    yield piece
            whole = True
        except (KeyboardInterrupt, GeneratorExit):
            whole = bool(pieces)
            raise
        finally:
            if whole:
                self.turns = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _stream(self, asked: list[Message], *, base: bool) -> Pieces:
        """The reply to `asked`, a turn list that ends with the user's."""
        system = self.system_message
        sent = self.assistant.fit([*system, *asked[2 * self.left_out :]], self.sampling.max_new_tokens)
        left_out = (len(system) + len(asked) - len(sent)) // 2
        if left_out and not self.left_out:
            self.note("The conversation is longer than the model's context: its oldest turns are left out now.")
        self.left_out = left_out
        with self.assistant.base() if base else nullcontext():
            yield from self.assistant.stream(sent, self.sampling)
