"""The line editor: history, completion, messages of several lines."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.output.defaults import create_output
from rich.console import Console

from yi_tune.chat.commands import COMMANDS, parameters
from yi_tune.chat.rendering import can_draw
from yi_tune.output import log_folder

_FILES = PathCompleter(expanduser=True)
_MENU_LINES = 6


def reader(console: Console, note: Callable[[str], None]) -> Callable[[str], str]:
    """What reads a message at the terminal `console`; on one that cannot move its cursor, plain `input`."""
    return line_editor(note, output=create_output(always_prefer_tty=True)) if can_draw(console) else _plain


def line_editor(
    note: Callable[[str], None], output: Output | None = None, keys: Input | None = None
) -> Callable[[str], str]:
    """Reads a message from `keys`, with the history of earlier chats; `note` is told when that cannot be kept."""
    session: PromptSession[str] = PromptSession(
        history=_History(log_folder() / "chat_history", note),
        completer=_Completer(),
        complete_while_typing=True,
        multiline=True,
        prompt_continuation="... ",
        key_bindings=_bindings(),
        reserve_space_for_menu=_MENU_LINES,
        input=keys,
        output=output,
    )
    return session.prompt


def _plain(prompt: str) -> str:
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        print()
        raise


def _bindings() -> KeyBindings:
    """Enter sends, Alt-Enter breaks the line: what is pasted may hold line breaks of its own."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

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
        if not text.startswith("/") or "\n" in text:
            return
        command, space, argument = text.partition(" ")
        if not space:
            for name, known in COMMANDS.items():
                if name.startswith(command):
                    yield Completion(name, -len(command), display_meta=known.summary)
        elif command == "/set":
            for key in parameters():
                if key.startswith(argument):
                    yield Completion(key, -len(argument))
        elif command in ("/save", "/load"):
            typed = argument.removeprefix("-f ").lstrip()
            yield from _FILES.get_completions(Document(typed), complete_event)


class _History(FileHistory):
    """Messages of earlier chats, in a file that only its owner can read. Where it cannot be kept, that is said once."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        super().__init__(path)
        self._note: Callable[[str], None] | None = note
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """Newest first; none when the file cannot be read."""
        try:
            return super().load_history_strings()
        except OSError as error:
            self._say(error)
            return []

    def store_string(self, string: str) -> None:
        """Append a message."""
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
            self._path.chmod(0o600)
            super().store_string(string)
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if self._note:
            self._note(f"What you type is not kept for the next chat: {self._path}: {error.strerror}")
            self._note = None
