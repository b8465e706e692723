"""A chat at a terminal: a conversation, the screen it is shown on, and the loop that reads what is typed."""

import re
from collections.abc import Callable

from yi_tune.chat import commands
from yi_tune.chat.conversation import Conversation, Pieces
from yi_tune.chat.rendering import Screen
from yi_tune.errors import YiTuneError
from yi_tune.output import log_traceback


class Session:
    """What the commands work on. With `both`, base and tuned model answer every message side by side."""

    def __init__(self, conversation: Conversation, screen: Screen, *, both: bool = False) -> None:
        self.conversation = conversation
        self.screen = screen
        self.both = both

    def say(self, text: str) -> None:
        """Show the answer to a message."""
        self._show(lambda: self.conversation.say(text), both=self.both)

    def retry(self) -> None:
        """Show another answer to the last message."""
        self._show(self.conversation.retry, both=self.both)

    def compare(self, text: str) -> None:
        """Show what base and tuned model say to `text`, or to the last message.

        The conversation goes on from the answer of the one that it is held with.
        """
        self._show((lambda: self.conversation.say(text)) if text else self.conversation.retry, both=True)

    def require_both(self) -> None:
        """Raises YiTuneError unless base and tuned model are both there."""
        if not self.conversation.assistant.switches:
            raise YiTuneError("Only one model is loaded.", "yi-tune chat --run NAME --compare loads a run's two.")

    def _show(self, answer: Callable[[], Pieces], *, both: bool) -> None:
        """Whatever a generation dies of, the chat goes on."""
        own, other = ("base", "tuned") if self.conversation.base else ("tuned", "base")
        try:
            if both:
                self.screen.side_by_side({own: answer, other: self.conversation.other})
            else:
                self.screen.reply(answer())
        except KeyboardInterrupt:
            self.screen.note("[stopped]")
        except YiTuneError as error:
            self.screen.complain(f"{error.message} {error.hint}")
        except Exception as error:
            what = f"The answer failed: {type(error).__name__}: {error}\nThe whole of it is in {log_traceback()}"
            self.screen.complain(what)


def interactive(session: Session, ask: Callable[[str], str]) -> None:
    """Chat with a person until /exit or end of file; `ask` shows a prompt and reads a message, as `input` does."""
    screen = session.screen
    screen.note("Type a message, or /help.")
    while True:
        try:
            typed = ask("base> " if session.conversation.base else "> ").strip()
            # What a terminal sends that is not UTF-8 is no text for a tokenizer.
            _obey(typed.encode(errors="replace").decode(), session)
        except EOFError:
            return
        except KeyboardInterrupt:
            screen.note("Ctrl-D or /exit leaves.")
        except YiTuneError as error:
            screen.complain(f"{error.message} {error.hint}".strip())


def _obey(typed: str, session: Session) -> None:
    """Carry out a command, or answer a message."""
    # A path, say, is no command.
    command = re.match(r"(/[A-Za-z0-9_-]*)(?:\s+(.*))?\Z", typed, re.DOTALL)
    if command:
        commands.find(command[1])(session, (command[2] or "").strip())
    elif typed:
        session.say(typed)
