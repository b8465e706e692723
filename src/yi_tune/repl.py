"""The chat loops: one for a person, one for lines in a pipe, one for JSON. None knows the engine."""

import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TextIO

from rich.console import Console

from yi_tune.errors import YiTuneError
from yi_tune.identity import Message
from yi_tune.output import log_traceback

Pieces = Generator[str]
# Takes the conversation so far, yields the reply piece by piece.
Reply = Callable[[list[Message]], Pieces]

HELP = """\
/clear         start over: forget the conversation
/system TEXT   set the system prompt and start over; without TEXT, none
/help          this list
/exit          leave (Ctrl-D does too)
Ctrl-C stops an answer."""


class Conversation:
    """The messages so far; a turn that fails leaves it as it was."""

    def __init__(self, reply: Reply, system: str | None = None) -> None:
        self._reply = reply
        self.system = system
        self.turns: list[Message] = []

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns = []

    def say(self, text: str) -> Pieces:
        """Answer `text`, piece by piece. An answer stopped halfway is kept as far as it came."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.turns, {"role": "user", "content": text}]
        pieces: list[str] = []
        try:
            with closing(self._reply([*system, *asked])) as stream:
                for piece in stream:
                    pieces.append(piece)
                    yield piece
        except (KeyboardInterrupt, GeneratorExit):
            self.turns = [*asked, {"role": "assistant", "content": "".join(pieces)}]
            raise
        self.turns = [*asked, {"role": "assistant", "content": "".join(pieces)}]


def interactive(conversation: Conversation, ask: Callable[[], str], console: Console, out: TextIO) -> None:
    """Chat with a person until /exit or end of file; `ask` reads a line as `input` does."""
    console.print("Type a message, or /help.", style="dim")
    while True:
        try:
            line = ask().strip()
        except EOFError:
            out.write("\n")
            return
        except KeyboardInterrupt:
            console.print("\nCtrl-D or /exit leaves.", style="dim")
            continue
        if line.startswith("/"):
            if not _command(line, conversation, console):
                return
        elif line:
            _answer(line, conversation, console, out)


def _command(line: str, conversation: Conversation, console: Console) -> bool:
    """Carry out a command; returns whether the chat goes on."""
    command, _, rest = line.partition(" ")
    if command == "/exit":
        return False
    if command == "/clear":
        conversation.clear()
        console.print("Starting over.", style="dim")
    elif command == "/system":
        conversation.system = rest.strip() or None
        conversation.clear()
        console.print("System prompt set; starting over." if rest.strip() else "No system prompt.", style="dim")
    elif command == "/help":
        console.print(HELP, markup=False, highlight=False)
    else:
        console.print(f"{command} is no command; /help lists them.", style="red", markup=False)
    return True


def _answer(line: str, conversation: Conversation, console: Console, out: TextIO) -> None:
    try:
        for piece in conversation.say(line):
            out.write(piece)
            out.flush()
        out.write("\n")
    except KeyboardInterrupt:
        console.print(" [stopped]", style="dim", markup=False)
    except YiTuneError as error:
        console.print(f"{error.message} {error.hint}", style="red", markup=False)
    except Exception as error:  # whatever a generation dies of, the chat goes on
        what = f"\nThe answer failed: {type(error).__name__}: {error}\nThe whole of it is in {log_traceback()}"
        console.print(what, style="red", markup=False, soft_wrap=True)


def piped(conversation: Conversation, lines: Iterable[str], out: TextIO) -> None:
    """Each line is a turn of one chat; each reply is written on its own line or lines."""
    for line in lines:
        if line.strip():
            for piece in conversation.say(line.strip()):
                out.write(piece)
                out.flush()
            out.write("\n")
            out.flush()


def piped_json(reply: Reply, system: str | None, lines: Iterable[str], out: TextIO) -> None:
    """Each line is a conversation, plain text or a JSON list of messages; each gets one JSON object.

    A line that cannot be answered gets an object with `error` in place of `reply`, and the rest go on.
    Raises YiTuneError at the end if there was one.
    """
    failed = 0
    for line in lines:
        if not line.strip():
            continue
        prompt = line.strip()
        try:
            messages = parse_conversation(prompt)
            if system and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": system}, *messages]
            answer: dict[str, object] = {"prompt": _prompt(prompt), "reply": "".join(reply(messages)).strip()}
        except Exception as error:
            failed += 1
            if not isinstance(error, YiTuneError):
                log_traceback()
            answer = {"prompt": _prompt(prompt), "error": str(error)}
        out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        out.flush()
    if failed:
        raise YiTuneError(f"{failed} of the lines could not be answered.", 'Their objects say why, under "error".')


def _prompt(line: str) -> object:
    """The line as it is given back: the list of messages if it is one, else the text."""
    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return parsed if isinstance(parsed, list) else line


def parse_conversation(line: str) -> list[Message]:
    """The messages of a line: a JSON list of them, or else one user message with the line's text.

    Raises YiTuneError for a list that is no conversation: system (optional), then user and assistant in
    turn, the last one the user's.
    """
    messages = _prompt(line)
    if not isinstance(messages, list):
        return [{"role": "user", "content": line}]
    wanted = 'Write [{"role": "user", "content": "..."}], user and assistant in turn, the last one the user.'
    for message in messages:
        if not (isinstance(message, dict) and isinstance(message.get("role"), str)):
            raise YiTuneError("A message has no role.", wanted)
        if not isinstance(message.get("content"), str):
            raise YiTuneError("A message's content is not text.", wanted)
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 == 0 or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise YiTuneError(f"The roles {', '.join(roles) or '(none)'} are no conversation.", wanted)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def ask() -> str:
    """A line typed by a person, whose terminal can edit it and recall earlier ones."""
    try:
        import readline  # noqa: F401  (that `input` then uses)
    except ImportError:  # Windows, whose console edits by itself
        pass
    return input("> ")


def stdin_lines() -> Iterator[str]:
    """Standard input line by line, as UTF-8 whatever the locale; what is not UTF-8 is replaced."""
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    yield from sys.stdin
