"""The language that people are spoken to in: modules ask gettext for its texts, and the English ones are the keys."""

import gettext
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

# A text in English, or that with its values, of which some may be such texts: it is `told` to whoever reads it.
Text: TypeAlias = str | dict[str, Any]

FOLDER = Path(__file__).parent / "locale"
DOMAIN = "yi_tune"
# What --lang and YI_TUNE_LANG take, and the catalogue of each.
CATALOGUES = {"en": "en", "zh": "zh_CN"}


def chosen(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """The language of a command line: that of --lang before the command, of YI_TUNE_LANG, or of the locale. With --json
    it is English: programs read that.
    """
    if "--json" in arguments:
        return "en"
    said = environment.get("YI_TUNE_LANG", "")
    for at, word in enumerate(arguments):
        if not word.startswith("-"):
            break
        if word.startswith("--lang"):
            said = word.partition("=")[2] or "".join(arguments[at + 1 : at + 2])
            break
    # What is neither is refused later, as other options are.
    names = map(environment.get, ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"))
    return said if said in CATALOGUES else "zh" if next(filter(None, names), "").startswith("zh") else "en"


def speak(language: str) -> None:
    """Have gettext speak it from here on, to Click and Typer too."""
    os.environ["LANGUAGE"] = CATALOGUES[language]
    gettext.bindtextdomain(DOMAIN, FOLDER)
    gettext.textdomain(DOMAIN)


def english(text: str) -> str:
    """A text that stands where nobody knows the language yet: it is translated where it is shown."""
    return text


def kept(text: str, /, **values: object) -> Text:
    """A text with the values for its {names}, to be told later: files are read in another language than written."""
    return {"english": text, **values}


def told(text: Text, translate: Callable[[str], str] = gettext.gettext) -> str:
    """A text in the language spoken, or as `translate` has it."""
    values = {} if isinstance(text, str) else dict(text)
    message = values.pop("english", text)
    message = message and translate(message)  # of "" gettext makes something else
    # A user's own row may hold an object too: it is a value like any other.
    texts = {name: part for name, part in values.items() if isinstance(part, dict) and "english" in part}
    said = values | {name: told(part, translate) for name, part in texts.items()}
    return message.format(**said) if said else message
