"""Conversations as lines of text: in a pipe as a chat, as JSON, and in the files of /save and /load."""

import json
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

from yi_tune.chat.conversation import Conversation
from yi_tune.chat.rendering import Screen
from yi_tune.data.identity import SHAPE, Message, check_messages
from yi_tune.errors import YiTuneError
from yi_tune.files import write_whole
from yi_tune.output import log_traceback


def stdin_lines() -> Iterator[str]:
    """Standard input line by line, as UTF-8 whatever the locale; what is not UTF-8 is replaced."""
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    yield from sys.stdin


def piped(conversation: Conversation, lines: Iterable[str], screen: Screen, *, both: bool = False) -> None:
    """Each line is a turn of one chat. With `both`, base and tuned model answer side by side, and the chat goes on from
    the tuned model's answers.
    """
    for text in map(str.strip, filter(str.strip, lines)):
        if both:
            screen.side_by_side({"tuned": partial(conversation.say, text), "base": conversation.other})
        else:
            screen.reply(conversation.say(text))


def piped_json(settings: Conversation, lines: Iterable[str], out: TextIO, *, both: bool = False) -> None:
    """Each line is a conversation, plain text or a JSON list of messages, with the model and system prompt of
    `settings`; each gets one JSON object.

    It holds the `reply`, or of `both` that of `base` and `tuned`. A line that cannot be answered gets an object with
    `error` in their place, and the rest go on. Raises YiTuneError at the end if there was one.
    """
    failed, assistant = 0, settings.assistant
    for line in filter(str.strip, lines):
        prompt = _prompt(line.strip())
        answer: dict[str, object] = {"prompt": prompt}
        try:
            messages = check_messages(prompt) if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            if messages[-1]["role"] != "user":
                raise YiTuneError("The last message has to be the user's.", SHAPE)
            if messages[0]["role"] != "system":
                messages = [*settings.system_message, *messages]
            if both:
                with assistant.base():
                    answer["base"] = "".join(assistant.stream(messages, settings.sampling)).strip()
            answer["tuned" if both else "reply"] = "".join(assistant.stream(messages, settings.sampling)).strip()
        except Exception as error:
            failed += 1
            if not isinstance(error, YiTuneError):
                log_traceback()
            answer = {"prompt": prompt, "error": str(error)}
        out.write(json.dumps(answer, ensure_ascii=False) + "\n")
        out.flush()
    if failed:
        raise YiTuneError(f"{failed} of the lines could not be answered.", 'Their objects say why, under "error".')


def _prompt(line: str) -> str | list[object]:
    """The list of messages that the line is in JSON, or else the line."""
    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return parsed if isinstance(parsed, list) else line


def named_file(text: str) -> Path:
    """The path that was typed: with spaces, in quotes or not, `~` the home folder. Raises YiTuneError for none."""
    path = text.strip("\"'")
    if not path:
        raise YiTuneError("Which file?", "Name it, as in: chat.jsonl")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise YiTuneError(f"{text}: {error}") from None


def save_messages(messages: list[Message], path: Path, *, overwrite: bool) -> None:
    """Write the messages to `path`, a line each, whole or not at all; only their owner can read them.

    Raises YiTuneError when it exists and is not to be overwritten, or cannot be written.
    """
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            raise YiTuneError(f"{path} is no file that can be written.", "Choose another name.")
        if path.exists() and not overwrite:
            raise YiTuneError(f"{path} exists.", f"/save -f {path} overwrites it.")
        write_whole(path, "".join(f"{json.dumps(message, ensure_ascii=False)}\n" for message in messages), mode=0o600)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise YiTuneError(f"{path} cannot be written: {getattr(error, 'strerror', error)}.") from None


def load_messages(path: Path) -> list[Message]:
    """The messages in `path`. Raises YiTuneError when it cannot be read or is no conversation."""
    messages: list[object] = []
    try:
        for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):  # noqa: B007
            if line.strip():
                messages.append(json.loads(line))
        return check_messages(messages)
    except UnicodeDecodeError:
        raise YiTuneError(f"{path} is not UTF-8 text.") from None
    except (json.JSONDecodeError, RecursionError):
        raise YiTuneError(f"{path}, line {number}: not JSON.", "It takes what /save writes.") from None
    except (OSError, ValueError) as error:
        raise YiTuneError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from None
    except YiTuneError as error:
        raise YiTuneError(f"{path}: {error.message}", error.hint) from None
