"""Files of rows: JSON, JSON lines, CSV and Parquet. All but a JSON array are read row by row, whatever their size."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yi_tune.errors import YiTuneError

# The place of a row, as "line 3" or "row 3", and the row or its error.
Row = tuple[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time, with a YiTuneError in place of a broken one; raises one for a broken file."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    ending = path.suffix.lower()
    if ending not in readers:
        raise YiTuneError(f"{path} is none of {', '.join(readers)}.", "Its ending says how it is read: rename it.")
    try:
        yield from readers[ending](path)
    except UnicodeDecodeError:
        raise YiTuneError(f"{path} is not UTF-8.", "Save it as UTF-8: yi-tune reads nothing else.") from None
    except OSError as error:
        raise YiTuneError(f"{path} cannot be read: {error.strerror or error}.", "Is that the right file?") from None
    except (ValueError, RecursionError) as error:
        remedy = "Mend that place, or copy the file anew: the rows behind it cannot be read."
        raise YiTuneError(f"{path} is broken: {error}.", remedy) from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row: Any
                try:
                    row = json.loads(line.decode("utf-8-sig").rstrip())
                except json.JSONDecodeError as error:
                    row = YiTuneError(f"broken JSON: {error.msg} at column {error.colno}")
                except (ValueError, RecursionError) as error:  # not UTF-8, or a number of too many digits
                    row = YiTuneError(str(error))
                yield f"line {number}", row


def _json(path: Path) -> Iterator[Row]:
    """An array of rows. A file that does not begin as one is read as JSON lines, which are often called .json too."""
    with path.open(encoding="utf-8-sig") as file:
        while (first := file.read(1)).isspace():
            pass
        if first != "[":
            yield from _jsonl(path)
            return
        file.seek(0)
        yield from ((f"row {number}", row) for number, row in enumerate(json.load(file), 1))


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(16_000_000)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns = next(reader, [])
        line = reader.line_num + 1
        try:
            for cells in reader:
                if len(cells) == len(columns):
                    yield f"line {line}", dict(zip(columns, cells, strict=True))
                elif cells:
                    yield f"line {line}", YiTuneError(f"{len(cells)} cells under {len(columns)} columns")
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"line {line}: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        number = 0
        for group in range(file.num_row_groups):  # all at once they take more memory the more there are
            for batch in file.iter_batches(batch_size=256, row_groups=[group]):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield f"row {number}", row
