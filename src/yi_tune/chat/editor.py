"""The line editor: history, completion, messages of several lines."""

import sys
import termios
import tty
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from gettext import gettext as _

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.output.defaults import create_output

from yi_tune.chat.session import COMMANDS, PARAMETERS, Session, summary
from yi_tune.errors import YiTuneError
from yi_tune.output import log_folder, log_traceback

_COMMANDS = WordCompleter(list(COMMANDS), sentence=True, meta_dict={name: summary(name) for name in COMMANDS})
_FILES = PathCompleter(expanduser=True)
# By the command that they complete the argument of.
_ARGUMENTS = {"/set": WordCompleter(list(PARAMETERS), sentence=True), "/save": _FILES, "/load": _FILES}


def converse(session: Session) -> None:
    """Chat with the person at the terminal. Keys typed while a reply is drawn wait, unseen, for the next prompt."""
    with ExitStack() as stack:
        if sys.stdin.isatty():
            stack.callback(termios.tcsetattr, sys.stdin, termios.TCSANOW, termios.tcgetattr(sys.stdin))
            tty.setcbreak(sys.stdin, termios.TCSANOW)
        interactive(session, reader())


def interactive(session: Session, ask: Callable[[str], str]) -> None:
    """Chat until /exit or end of file, whatever a command or an answer dies of; `ask` reads as `input` does."""
    note = session.screen.note
    note(_("Type a message, or /help."))
    while True:
        stopped = _("Ctrl-D or /exit leaves.")
        try:
            typed = ask("base> " if session.base else "> ").strip()
            stopped = _("[stopped]")
            if typed:
                session.obey(typed)
        except EOFError:
            return
        except KeyboardInterrupt:
            note(stopped)
        except YiTuneError as error:
            note(f"{error.message} {error.hint}".strip(), "red")
        except OSError as error:
            note(str(error), "red")
        except Exception as error:
            note(
                _("That failed: {kind}: {error}\nThe whole of it is in {log}").format(
                    kind=type(error).__name__, error=error, log=log_traceback()
                ),
                "red",
            )


def reader(output: Output | None = None, keys: Input | None = None) -> Callable[[str], str]:
    """Reads a message at the terminal, with the history of earlier chats."""
    path = log_folder() / "chat_history"
    path.touch(0o600)  # for nobody else to read
    session: PromptSession[str] = PromptSession(
        history=FileHistory(path),
        completer=_Completer(),
        complete_while_typing=True,
        multiline=True,
        # A line that is wrapped has none of it, which would be copied with the text.
        prompt_continuation=lambda width, line, wrapped: "" if wrapped else "... ",
        key_bindings=_bindings(),
        reserve_space_for_menu=6,
        input=keys,
        output=output or create_output(always_prefer_tty=True),
    )
    return session.prompt


def _bindings() -> KeyBindings:
    """Enter sends, Alt-Enter breaks the line: what is pasted may hold line breaks of its own. Ctrl-Z suspends."""
    bindings = KeyBindings()
    bindings.add("c-z")(lambda event: event.app.suspend_to_background())
    bindings.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    bindings.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))

    @bindings.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        # prompt_toolkit's own fails, with a traceback, at one that is heard when the prompt has just gone.
        if event.app.is_running:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings


class _Completer(Completer):
    """Completes commands, what /set sets, and files."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        command, space, argument = text.partition(" ")
        completer: Completer | None = _ARGUMENTS.get(command) if space else _COMMANDS
        if completer and text.startswith("/") and "\n" not in text:
            typed = argument.removeprefix("-f ").lstrip() if space else command
            yield from completer.get_completions(Document(typed), complete_event)
