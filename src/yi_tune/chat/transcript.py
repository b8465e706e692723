"""A conversation as a file: JSON lines, a message each, as /save writes and /load reads it."""

import json
import os
import tempfile
from pathlib import Path

from yi_tune.chat.conversation import check_messages
from yi_tune.data.identity import Message
from yi_tune.errors import YiTuneError


def named_file(text: str) -> Path:
    """The path that was typed: with spaces, in quotes or not, `~` the home folder. Raises YiTuneError for none."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    if not text:
        raise YiTuneError("Which file?", "Name it, as in: chat.jsonl")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise YiTuneError(f"{text}: {error}", "") from None


def save_messages(messages: list[Message], path: Path, *, overwrite: bool) -> None:
    """Write the messages to `path`, whole or not at all; only their owner can read them.

    Raises YiTuneError when it exists and is not to be overwritten, or cannot be written.
    """
    lines = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            raise YiTuneError(f"{path} is no file that can be written.", "Choose another name.")
        if path.exists() and not overwrite:
            raise YiTuneError(f"{path} exists.", f"/save -f {path} overwrites it.")
        # A file beside it that takes its name: a full disk leaves the old one as it was.
        descriptor, name = tempfile.mkstemp(prefix=".yi-tune-", dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(lines)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise YiTuneError(f"{path} cannot be written: {getattr(error, 'strerror', error)}.", "") from None


def load_messages(path: Path) -> list[Message]:
    """The messages in `path`. Raises YiTuneError when it cannot be read or is no conversation."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise YiTuneError(f"{path} is not UTF-8 text.", "") from None
    except (OSError, ValueError) as error:
        raise YiTuneError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.", "") from None
    messages: list[object] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                messages.append(json.loads(line))
            except (ValueError, RecursionError):
                raise YiTuneError(f"{path}, line {number}: not JSON.", "It takes what /save writes.") from None
    try:
        return check_messages(messages)
    except YiTuneError as error:
        raise YiTuneError(f"{path}: {error.message}", error.hint) from None
