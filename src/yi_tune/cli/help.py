"""The help in another language: docstrings and `help=` stay English where the commands are, and are looked up here."""

import re
import unicodedata
from collections.abc import Iterator
from gettext import gettext as _
from typing import Any

from click import _textwrap

# What a line may end after: a Chinese character or a word, with the punctuation that belongs to it; a space.
_BEFORE, _AFTER = r"（“《\[", "，。；：、！？）”》"
_PIECES = re.compile(rf"[{_BEFORE}]*(?:[\u3400-\u9fff]|[^\s\u3400-\u9fff{_BEFORE}{_AFTER}]+|\s+)[{_AFTER}]*|.")
_EXAMPLE = re.compile(r"\x08|(echo .*)?yi-tune ")


class _Wrapper(_textwrap.TextWrapper):
    """Click's, which would take a Chinese sentence for one long word, and each of its characters for one cell."""

    def _split(self, text: str) -> list[str]:
        return _PIECES.findall(text)


def _cells(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "FW") for character in text)


def texts(command: Any) -> Iterator[tuple[Any, str, list[str]]]:
    """Each text for people in the help of a command and of those below it: an object, its attribute, the paragraphs."""
    for part in (command, *command.params):
        for name in ("help", "epilog", "show_default"):
            said = getattr(part, name, None)
            if isinstance(said, str) and " " in said:  # a default of one word is a value
                yield part, name, said.split("\n\n")
    for below in getattr(command, "commands", {}).values():
        yield from texts(below)


def key(paragraph: str) -> str:
    """What the catalogue has for a paragraph of a help; "" for commands to type, which need no translation."""
    return "" if _EXAMPLE.match(paragraph) else " ".join(paragraph.split())


def translate(command: Any) -> None:
    """Put the help of a command and of those below it into the user's language, which is not English."""
    for part, name, paragraphs in texts(command):
        said = [_(key(one)) if key(one) else one for one in paragraphs]
        setattr(part, name, "\n\n".join(said))
        if name == "help" and hasattr(part, "short_help"):
            part.short_help = said[0].partition("。")[0]
    _textwrap.TextWrapper, _textwrap.term_len = _Wrapper, _cells  # type: ignore[misc,attr-defined,assignment]
