"""What yi-tune says, in each language: nothing is missing, nothing is left over, and nothing is out of date."""

import ast
import re
from collections.abc import Iterator
from string import Formatter

import pytest
from babel.messages.catalog import Message

from tests import messages
from yi_tune import language

LOCALES = sorted({*language.CATALOGUES.values()} - {"en"})


def placeholders(text: str) -> set[str]:
    """What is put into a text, in any order; a plural need not say the number."""
    return {name for _, name, _, _ in Formatter().parse(text) if name} | {*re.findall(r"%\(\w+\)s", text)}


@pytest.mark.parametrize("locale", LOCALES)
def test_catalogue_has_every_text_and_no_other(locale: str) -> None:
    known, needed = ({message.id for message in catalogue} for catalogue in (messages.read(locale), messages.extract()))
    assert known - needed == set(), "run make messages"
    assert needed - known == set(), "run make messages, and translate what is new"


@pytest.mark.parametrize("locale", LOCALES)
def test_everything_is_translated(locale: str) -> None:
    def unfit(message: Message) -> bool:
        english = [message.id] if isinstance(message.id, str) else message.id
        said = [message.string] if isinstance(message.string, str) else message.string
        names = placeholders(" ".join(english))
        # One form for all numbers, where a language has no more, may leave out what stands in one of the English two.
        return message.fuzzy or any(
            not text or (placeholders(text) != names if len(english) == 1 else not placeholders(text) <= names)
            for text in said
        )

    assert [message.id for message in messages.read(locale) if message.id and unfit(message)] == []


@pytest.mark.parametrize("locale", LOCALES)
def test_compiled_catalogues_are_current(locale: str) -> None:
    catalogue = messages.read(locale)
    assert messages.po(locale).with_suffix(".mo").read_bytes() == messages.compiled(catalogue), "run make messages"
    written = (messages.PAGE / f"{locale}.json").read_text(encoding="utf-8")
    assert written == messages.page_json(catalogue), "run make messages"


# What shows its text as it is, by the number of its arguments that are texts. YiTuneError and HubError ask gettext
# themselves, so that theirs has to be a literal or come from `_`.
SHOWN = {"print": 1, "note": 1, "say": 1, "stage": 1, "status": 1, "confirm": 1, "prompt": 1, "BadParameter": 1}
TRANSLATED = {"YiTuneError": 2, "HubError": 2}
# They are no sentences: commands to copy, names and figures; and what is said before the language is known.
AS_IT_IS = {"yi-tune {}", "base> "}


def texts_without_translation(code: str) -> Iterator[str]:
    """The literals and f-strings with words in them that are shown, and that gettext is not asked about; and those that
    it is asked about within an f-string, where Babel does not find them.
    """
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            calls = [call for call in ast.walk(node) if isinstance(call, ast.Call) and ast.unparse(call.func) == "_"]
            yield from (str(arg.value) for call in calls for arg in call.args if isinstance(arg, ast.Constant))
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for shown in node.args[: SHOWN.get(name) or TRANSLATED.get(name, 0)]:
            if isinstance(shown, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in shown.values)
            elif isinstance(shown, ast.Constant) and name in SHOWN:
                text = str(shown.value)
            else:
                continue
            if re.search("[A-Za-z]{2}", text) and text not in AS_IT_IS:
                yield text


def test_every_text_goes_through_gettext() -> None:
    found = list(
        texts_without_translation(
            'raise YiTuneError(f"No {x}.", "Do it.")\nout.print("Done.")\nsay(_("ok"), f"{_(\'no\')}")'
        )
    )
    assert found == ["No {}.", "Done.", "no"]
    for file in sorted(messages.SRC.rglob("*.py")):
        assert [*texts_without_translation(file.read_text(encoding="utf-8"))] == [], file
