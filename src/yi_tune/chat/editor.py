"""The line editor: history, completion, messages of several lines."""

from collections.abc import Callable, Iterable
from contextlib import suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.output.defaults import create_output
from rich.console import Console

from yi_tune.chat.rendering import can_draw
from yi_tune.chat.session import COMMANDS, PARAMETERS
from yi_tune.output import log_folder

_COMMANDS = WordCompleter(list(COMMANDS), sentence=True, meta_dict={name: row[1] for name, row in COMMANDS.items()})
_FILES = PathCompleter(expanduser=True)
# By the command that they complete the argument of.
_ARGUMENTS = {"/set": WordCompleter(list(PARAMETERS), sentence=True), "/save": _FILES, "/load": _FILES}


def reader(
    console: Console, note: Callable[[str], None], output: Output | None = None, keys: Input | None = None
) -> Callable[[str], str]:
    """Reads a message at the terminal `console`, with the history of earlier chats; `note` is told when that cannot be
    kept. On a terminal that cannot move its cursor it is plain `input`.
    """
    if not can_draw(console):
        return input
    session: PromptSession[str] = PromptSession(
        history=_history(note),
        completer=_Completer(),
        complete_while_typing=True,
        multiline=True,
        prompt_continuation="... ",
        key_bindings=_bindings(),
        reserve_space_for_menu=6,
        input=keys,
        output=output or create_output(always_prefer_tty=True),
    )
    return session.prompt


def _bindings() -> KeyBindings:
    """Enter sends, Alt-Enter breaks the line: what is pasted may hold line breaks of its own."""
    bindings = KeyBindings()
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


class _History(FileHistory):
    """Goes on when the disk fills up."""

    def store_string(self, string: str) -> None:
        """Append a message."""
        with suppress(OSError):
            super().store_string(string)


def _history(note: Callable[[str], None]) -> History:
    """Messages of earlier chats, in a file that only its owner can read."""
    path = log_folder() / "chat_history"
    try:
        path.touch(0o600)
        path.chmod(0o600)
        path.open("ab").close()
        return _History(path)
    except OSError as error:
        note(f"What you type is not kept for the next chat: {path}: {error.strerror}")
        return InMemoryHistory()
