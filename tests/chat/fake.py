"""An assistant that answers as it was told, and people who type."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from yi_tune.chat.editor import interactive
from yi_tune.chat.rendering import Pieces, Screen
from yi_tune.chat.session import Session
from yi_tune.data.identity import Message
from yi_tune.output import TextConsole as Console
from yi_tune.sampling import ReplyStats, Sampling


class FakeAssistant:
    """Replies as told, piece by piece, and remembers what it was asked. An exception is raised in its turn.

    Untold it echoes: <question>, and as the base <base: question>. Its context holds `context` messages.
    """

    def __init__(self, *replies: list[str | BaseException], switches: bool = True, context: int = 1000) -> None:
        self.asked: list[list[Message]] = []
        self.samplings: list[Sampling] = []
        self.switches = switches
        self.last: ReplyStats | None = None
        self.context = context
        self._replies = list(replies)
        self._base = False

    @contextmanager
    def base(self) -> Iterator[None]:
        self._base = True
        try:
            yield
        finally:
            self._base = False

    def encode(self, messages: list[Message]) -> list[int]:
        return [0] * len(messages)

    def stream(self, messages: list[Message], sampling: Sampling) -> Pieces:
        self.samplings.append(sampling)
        self.last = ReplyStats(100, 90, 21, 0.5, 2.5)
        self.asked.append([dict(message) for message in messages])
        echo = [f"<{'base: ' if self._base else ''}{messages[-1]['content']}", ">"]
        for piece in self._replies.pop(0) if self._replies else echo:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


Typed = str | type[BaseException]


def typed(*lines: Typed) -> Callable[[str], str]:
    """A person who types these lines, then Ctrl-D; an exception stands for a key."""
    left = iter(lines)

    def ask(prompt: str) -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return ask


def new_session(
    assistant: FakeAssistant, screen: io.TextIOBase, *, system: str | None = None, both: bool = False
) -> Session:
    """A session whose answers and notes go to `screen`, which is no terminal."""
    console = Console(file=screen, width=100)
    return Session(assistant, Screen(console, console), system=system, both=both)


def chat(assistant: FakeAssistant, *lines: Typed, system: str | None = None, both: bool = False) -> tuple[str, Session]:
    """The transcript of a chat after its first line, and the session in the end."""
    screen = io.StringIO()
    session = new_session(assistant, screen, system=system, both=both)
    interactive(session, typed(*lines))
    transcript = screen.getvalue()
    assert transcript.startswith("Type a message, or /help.\n")
    return transcript.partition("\n")[2], session


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
