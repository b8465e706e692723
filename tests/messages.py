"""The texts that yi-tune shows, and their translations: `make messages` runs this, tests/test_messages.py checks it."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import click
import typer
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from yi_tune import cli, language
from yi_tune.cli.help import key, texts
from yi_tune.config import reasons, shipped, summary
from yi_tune.data.heldout import questions

Message = str | tuple[str, str]  # with its plural

SRC = Path(language.__file__).parent
PAGE = SRC / "serve" / "page"
# Where Click says what a user of ours can see.
_CLICK = ("core", "decorators", "exceptions", "formatting", "parser", "termui", "types")
CLICK = [Path(click.__file__).with_name(f"{name}.py") for name in _CLICK]
# YiTuneError and HubError translate what they are given themselves: both their texts are keys of their own.
_FIRST = {"_": None, "ngettext": (1, 2), "english": None, "kept": None, "YiTuneError": (1,), "HubError": (1,)}
_SECOND = {"YiTuneError": (2,), "HubError": (2,)}


def _extract(method: str, file: Path, keywords: dict[str, tuple[int, ...] | None]) -> set[Message]:
    return {message for _, message, _, _ in extract_from_file(method, file, keywords=keywords) if message}


def _of_python(file: Path) -> set[Message]:
    return _extract("python", file, _FIRST) | _extract("python", file, _SECOND)


class _Html(HTMLParser):
    """Collects what a person reads in a page's body."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.texts += [value or "" for name, value in attrs if name in ("title", "placeholder", "aria-label")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def of_page() -> set[Message]:
    """The texts of the page of `yi-tune web`."""
    html = _Html()
    html.feed((PAGE / "index.html").read_text(encoding="utf-8").partition("<body>")[2])
    found: set[Message] = {text for text in html.texts if any(map(str.isalpha, text))}
    return found.union(*(_extract("javascript", file, {"say": None}) for file in PAGE.glob("*.js")))


def of_help() -> set[Message]:
    """The texts that the commands' help is made of."""
    found = texts(typer.main.get_command(cli.app))
    return {key(paragraph) for _, _, paragraphs in found for paragraph in paragraphs} - {""}


def of_configs() -> set[Message]:
    """What a shipped config is for, and the reasons in it: for `config ls` and --dry-run."""
    return {text for path in shipped().values() for text in (summary(path), *reasons(path).values())}


def of_questions() -> set[Message]:
    """The kinds of questions, for tables of scores."""
    return {question.kind for question in questions()}


def extract() -> Catalog:
    """A catalogue of all texts, without translations: where each is, and what."""
    places = {"serve/page": of_page(), "cli": of_help(), "configs": of_configs(), "data": of_questions()}
    places |= {str(file.relative_to(SRC)): _of_python(file) for file in sorted(SRC.rglob("*.py"))}
    places["report.html.jinja"] = _extract("jinja2", SRC / "report.html.jinja", _FIRST)
    places |= {f"click/{file.name}": _of_python(file) for file in CLICK}
    places["typer/core.py"] = _of_python(Path(typer.core.__file__))
    catalogue = Catalog()
    for place, found in places.items():
        for message in sorted(found, key=str):
            catalogue.add(message, locations=[(place, 1)])
    return catalogue


def po(locale: str) -> Path:
    """The file of translations of a locale."""
    return language.FOLDER / locale / "LC_MESSAGES" / f"{language.DOMAIN}.po"


def read(locale: str) -> Catalog:
    """The translations that there are."""
    with po(locale).open("rb") as file:
        return read_po(file, locale=locale)


def compiled(catalogue: Catalog) -> bytes:
    """The .mo of a catalogue."""
    written = io.BytesIO()
    write_mo(written, catalogue)
    return written.getvalue()


def page_json(catalogue: Catalog) -> str:
    """What the page loads."""
    texts = {message: catalogue[message].string for message in sorted(of_page(), key=str)}
    return json.dumps(texts, ensure_ascii=False, indent=0) + "\n"


if __name__ == "__main__":
    for locale in sorted({*language.CATALOGUES.values()} - {"en"}):
        catalogue = read(locale)
        catalogue.update(extract(), no_fuzzy_matching=True, update_creation_date=False)
        with po(locale).open("wb") as file:
            write_po(file, catalogue, width=120, include_lineno=False, ignore_obsolete=True)
        po(locale).with_suffix(".mo").write_bytes(compiled(catalogue))
        (PAGE / f"{locale}.json").write_text(page_json(catalogue), encoding="utf-8")
