"""Files of rows: JSON, JSON lines, CSV and Parquet, read row by row, so that their size does not matter."""

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from yi_tune.errors import YiTuneError

# In bytes or characters: what is longer is no row, and is not held in memory.
_LONGEST = 16_000_000
_CHUNK = 1_000_000
# Python reads 4,300 at the most.
_TOO_MANY_DIGITS = "a number of too many digits"
_SPACE = re.compile(r"[ \t\r\n]*")


class RowError(Exception):
    """Why a row cannot be trained on."""


class Repeated(dict[str, Any]):
    """An object in which a key stands twice; the `json` module would take the last one, silently."""


# Where a row is, as "line 3" or "row 3", and the row or what is wrong with it.
Row = tuple[str, Any]


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
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise YiTuneError(f"{path} is UTF-16.", "Save it as UTF-8: yi-tune reads nothing else.")
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise YiTuneError(f"{path} cannot be read: {error.strerror or error}.", "Is that the right file?") from None


def _broken(path: Path, where: str, what: str) -> YiTuneError:
    return YiTuneError(
        f"{path} is broken on {where}: {what}. What follows cannot be told apart into rows.", "Mend that line."
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    return row if len(row) == len(pairs) else Repeated(row)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(_LONGEST):
            number += 1
            line = f"line {number}"
            if len(raw) == _LONGEST:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_LONGEST)
                yield line, RowError(f"longer than {_LONGEST:,} bytes")
                continue
            if number == 1:
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
    """A part of a JSON text, in which what has been read is stepped over, and dropped when more is needed."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.line = 1
        self.row = 0
        self._path, self._file = path, file
        self._text, self._at = "", 0
        # Where in the text the line begins; below 0 when that has been dropped.
        self._line_start = 0
        self._decoder = json.JSONDecoder(object_pairs_hook=_object)

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._text = self._text[self._at :] + chunk
        self._line_start -= self._at
        self._at = 0
        return bool(chunk)

    def _move(self, end: int) -> None:
        if newlines := self._text.count("\n", self._at, end):
            self.line += newlines
            self._line_start = self._text.rindex("\n", self._at, end) + 1
        self._at = end

    def broken(self, what: str) -> YiTuneError:
        """That the text is broken here."""
        where = f"line {self.line}, column {self._at - self._line_start + 1}"
        return _broken(self._path, f"{where} (row {self.row})" if self.row else where, what)

    def peek(self) -> str:
        """The next character that is not space, "" at the end."""
        while True:
            if space := _SPACE.match(self._text, self._at):
                self._move(space.end())
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, allowed: str) -> str:
        """The next character that is not space, which has to be one of `allowed`; the window moves behind it."""
        character = self.peek()
        if not character or character not in allowed:
            found = repr(character) if character else "its end"
            raise self.broken(f"{' or '.join(allowed)} is expected, not {found}")
        self._move(self._at + 1)
        return character

    def value(self) -> Any:
        """The next value, a row; the window moves behind it."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Cut off by the window's end, or really broken: more of the text tells.
                read = error.pos - self._at
                if len(self._text) - self._at > _LONGEST or not self._more():
                    self._move(self._at + read)
                    raise self.broken(error.msg) from None
            except RecursionError:
                raise self.broken("nested too deeply") from None
            except ValueError:
                raise self.broken(_TOO_MANY_DIGITS) from None
            else:
                if end == len(self._text) and self._more():  # the rest of a number may follow
                    continue
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
                window.row += 1
                window.peek()
                where = f"row {window.row}, line {window.line}"
                yield where, window.value()
                separator = window.take(",]")
            if window.peek():
                raise window.broken("the array ends before it")
            return
    yield from _jsonl(path)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = "line 1"
        try:
            columns = next(reader, [])
            if twice := sorted({column for column in columns if columns.count(column) > 1}):
                raise YiTuneError(f"{path} has the column {twice[0]!r} twice.", "Rename one of them.")
            line = f"line {reader.line_num + 1}"
            for cells in reader:
                if len(cells) == len(columns):
                    yield line, dict(zip(columns, cells, strict=True))
                elif cells:
                    yield line, RowError(f"{len(cells)} cells under {len(columns)} columns")
                line = f"line {reader.line_num + 1}"
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
            for group in range(file.num_row_groups):  # all at once they take more memory the more there are
                for batch in file.iter_batches(batch_size=256, row_groups=[group]):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"row {number}", row
    except ArrowException as error:
        raise YiTuneError(f"{path} is no whole Parquet file: {error}", "Is that the right file?") from None
