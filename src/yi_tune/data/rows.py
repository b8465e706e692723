"""Files of rows: JSON, JSON lines, CSV and Parquet. All but a JSON array are read row by row, whatever their size."""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yi_tune.errors import YiTuneError

# In characters: the longest cell of a CSV file.
_LONGEST = 16_000_000


class RowError(YiTuneError):
    """Why a row cannot be trained on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "")


class Repeated(dict[str, Any]):
    """An object in which a key stands twice; the `json` module would take the last one, silently."""


# The place of a row, as "line 3" or "row 3", and the row or its error.
Row = tuple[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time; a RowError stands for one that cannot be read.

    Bytes that are not UTF-8 come as surrogates. Raises YiTuneError when the file cannot be read, or not beyond some
    line.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise YiTuneError(
            f"{path} is none of {', '.join(readers)}.", "Its ending has to say how it is read: rename it."
        )
    try:
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise YiTuneError(f"{path} is UTF-16.", "Save it as UTF-8: yi-tune reads nothing else.")
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise YiTuneError(f"{path} cannot be read: {error.strerror or error}.", "Is that the right file?") from None


def _broken(path: Path, where: str) -> YiTuneError:
    return YiTuneError(f"{path} is broken, {where}. Rows behind it cannot be told apart.", "Mend that place.")


def _parse(text: str) -> Any:
    """Raises ValueError, for a number of too many digits too, and RecursionError."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    return row if len(row) == len(pairs) else Repeated(row)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if line.strip():
                try:
                    yield f"line {number}", _parse(line.rstrip().decode(errors="surrogateescape"))
                except json.JSONDecodeError as error:
                    yield f"line {number}", RowError(f"broken JSON: {error.msg} at column {error.colno}")
                except (ValueError, RecursionError) as error:
                    yield f"line {number}", RowError(str(error))


def _json(path: Path) -> Iterator[Row]:
    """An array of rows. A file that does not begin as one is read as JSON lines, which are often called .json too."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        while (first := file.read(1)).isspace():
            pass
        if first != "[":
            yield from _jsonl(path)
            return
        file.seek(0)
        try:
            rows = _parse(file.read())
        except (ValueError, RecursionError) as error:
            raise _broken(path, str(error)) from None
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = "line 1"
        try:
            columns = next(reader, [])
            _check_columns(path, columns)
            line = f"line {reader.line_num + 1}"
            for cells in reader:
                if len(cells) == len(columns):
                    yield line, dict(zip(columns, cells, strict=True))
                elif cells:
                    yield line, RowError(f"{len(cells)} cells under {len(columns)} columns")
                line = f"line {reader.line_num + 1}"
        except csv.Error as error:
            raise _broken(path, f"{line}: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            number = 0
            for group in range(file.num_row_groups):  # all at once they take more memory the more there are
                for batch in file.iter_batches(batch_size=256, row_groups=[group]):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"row {number}", row
    except ArrowException as error:
        raise YiTuneError(f"{path} is no whole Parquet file: {error}", "Is that the right file?") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise YiTuneError(f"{path} has the column {twice[0]!r} twice.", "Rename one of them.")
