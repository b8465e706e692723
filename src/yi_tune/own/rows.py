"""Files of rows: JSON, JSON lines, CSV and Parquet, read row by row, so that their size does not matter."""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from yi_tune.errors import YiTuneError

# In bytes or characters: what is longer is no row, and is not held in memory.
_LONGEST = 16_000_000
_CHUNK = 1_000_000
# Python reads 4,300 at the most.
_TOO_MANY_DIGITS = "a number of too many digits"


class RowError(Exception):
    """Why a row cannot be trained on."""


class Repeated(dict[str, Any]):
    """An object in which a key stands twice; the `json` module would take the last one, silently."""


# The line where a row begins (of Parquet: which row it is), and the row or what is wrong with it.
Row = tuple[int, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time; a RowError stands for one that cannot be read.

    Bytes that are not UTF-8 come as surrogates. Raises YiTuneError when the file cannot be read, or
    not beyond some line.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise YiTuneError(
            f"{path} is none of {', '.join(readers)}.", "Rename it to what it is: its ending says how it is read."
        )
    try:
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise YiTuneError(f"{path} cannot be read: {error.strerror or error}.", "Is that the right file?") from None


def _broken(path: Path, line: int, what: str) -> YiTuneError:
    return YiTuneError(
        f"{path} is broken on line {line}: {what}. What follows cannot be told apart into rows.", "Mend that line."
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    return row if len(row) == len(pairs) else Repeated(row)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        line = 0
        while raw := file.readline(_LONGEST):
            line += 1
            if len(raw) == _LONGEST:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_LONGEST)
                yield line, RowError(f"longer than {_LONGEST:,} bytes")
                continue
            if line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            try:
                yield line, json.loads(raw.decode(errors="surrogateescape"), object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                yield line, RowError(f"broken JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                yield line, RowError("nested too deeply")
            except ValueError:
                yield line, RowError(_TOO_MANY_DIGITS)


class _Window:
    """A part of a JSON text, moved along it; `line` is where it begins."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.line = 1
        self._path, self._file = path, file
        self._text = ""
        self._decoder = json.JSONDecoder(object_pairs_hook=_object)

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._text += chunk
        return bool(chunk)

    def _move(self, end: int) -> None:
        self.line += self._text.count("\n", 0, end)
        self._text = self._text[end:]

    def peek(self) -> str:
        """The next character that is not space, "" at the end."""
        while True:
            self._move(len(self._text) - len(self._text.lstrip(" \t\r\n")))
            if self._text or not self._more():
                return self._text[:1]

    def take(self, allowed: str) -> str:
        """The next character that is not space, which has to be one of `allowed`; the window moves behind it."""
        character = self.peek()
        if not character or character not in allowed:
            found = repr(character) if character else "its end"
            raise _broken(self._path, self.line, f"{' or '.join(allowed)} is expected, not {found}")
        self._move(1)
        return character

    def value(self) -> Any:
        """The next value; the window moves behind it."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text)
            except json.JSONDecodeError as error:
                # Cut off by the window's end, or really broken: more of the text tells.
                if len(self._text) > _LONGEST or not self._more():
                    raise _broken(self._path, self.line + error.lineno - 1, error.msg) from None
            except RecursionError:
                raise _broken(self._path, self.line, "nested too deeply") from None
            except ValueError:
                raise _broken(self._path, self.line, _TOO_MANY_DIGITS) from None
            else:
                self._move(end)
                return value


def _json(path: Path) -> Iterator[Row]:
    """An array of rows. What does not begin as one is read as JSON lines, which are often called .json too."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        window = _Window(path, file)
        if window.peek() == "[":
            window.take("[")
            if window.peek() == "]":
                return
            separator = ","
            while separator == ",":
                window.peek()
                line = window.line
                yield line, window.value()
                separator = window.take(",]")
            if window.peek():
                raise _broken(path, window.line, "the array ends before it")
            return
    yield from _jsonl(path)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1
        try:
            columns = next(reader, [])
            if twice := sorted({column for column in columns if columns.count(column) > 1}):
                raise YiTuneError(f"{path} has the column {twice[0]!r} twice.", "Rename one of them.")
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(columns):
                    yield line, dict(zip(columns, cells, strict=True))
                elif cells:
                    yield line, RowError(f"{len(cells)} cells under {len(columns)} columns")
                line = reader.line_num + 1
        except csv.Error as error:
            raise _broken(path, line, str(error)) from None


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if twice := sorted({column for column in columns if columns.count(column) > 1}):
                raise YiTuneError(f"{path} has the column {twice[0]!r} twice.", "Rename one of them.")
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        raise YiTuneError(f"{path} is no whole Parquet file: {error}", "Is that the right file?") from None
