"""The chat without a person: lines in a pipe, as a chat or as JSON."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TextIO

from yi_tune.chat.conversation import SHAPE, Conversation, Pieces, check_messages
from yi_tune.chat.rendering import Screen
from yi_tune.data.identity import Message
from yi_tune.errors import YiTuneError
from yi_tune.output import log_traceback

# Takes a conversation, yields the reply piece by piece.
Reply = Callable[[list[Message]], Pieces]


def piped(conversation: Conversation, lines: Iterable[str], out: TextIO) -> None:
    """Each line is a turn of one chat; each reply is written on its own line or lines."""
    for line in lines:
        if line.strip():
            for piece in conversation.say(line.strip()):
                out.write(piece)
                out.flush()
            out.write("\n")
            out.flush()


def piped_both(conversation: Conversation, lines: Iterable[str], screen: Screen) -> None:
    """As `piped`, base and tuned model side by side; the chat goes on from the tuned model's answers."""
    for line in lines:
        if text := line.strip():
            screen.side_by_side({"tuned": partial(conversation.say, text), "base": conversation.other})


def piped_json(replies: Mapping[str, Reply], system: str | None, lines: Iterable[str], out: TextIO) -> None:
    """Each line is a conversation, plain text or a JSON list of messages; each gets one JSON object.

    It holds the reply of each of `replies` under its key. A line that cannot be answered gets an object with `error`
    in their place, and the rest go on. Raises YiTuneError at the end if there was one.
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
            texts = {key: "".join(reply(messages)).strip() for key, reply in replies.items()}
            answer: dict[str, object] = {"prompt": _prompt(prompt), **texts}
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
    checked = check_messages(messages)
    if checked[-1]["role"] != "user":
        roles = ", ".join(message["role"] for message in checked)
        raise YiTuneError(f"The roles {roles} are no conversation to answer: the last one has to be user.", SHAPE)
    return checked


def stdin_lines() -> Iterator[str]:
    """Standard input line by line, as UTF-8 whatever the locale; what is not UTF-8 is replaced."""
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    yield from sys.stdin
