"""The rows of `--data`: where they are, and their files (JSON, JSON lines, CSV, Parquet)."""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from gettext import gettext as _
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator

from yi_tune.data.forms import ALPACA, Form
from yi_tune.data.hub import ENDINGS, Commits, Hosted
from yi_tune.errors import YiTuneError, did_you_mean

# The place of a row, as "line 3" or "row 3", and the row or its error.
Row = tuple[str, Any]
# Where an entry of dataset_info.json has its rows when it has one of these keys, whatever its file_name.
_ELSEWHERE = ("om_hub_url", "script_url", "cloud_file_name")
_HOSTED = re.compile(
    r"(?:(huggingface|modelscope):)?([a-z\d][\w.-]*/[a-z\d][\w.-]*)(?:@([^\s:#]+))?", re.ASCII | re.IGNORECASE
)


class Entry(BaseModel):
    """What yi-tune takes of an entry of LLaMA-Factory's dataset_info.json (llamafactory/data/parser.py)."""

    model_config = ConfigDict(strict=True)
    file_name: str = ""
    hf_hub_url: str | None = None
    ms_hub_url: str | None = None
    subset: str | None = None
    folder: str | None = None
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: Literal[False] = False
    split: str = "train"
    num_samples: PositiveInt | None = None
    columns: Form | None = None
    tags: Form | None = None

    @property
    def form(self) -> Form:
        """The columns and tags. Where some are listed, there are no others."""
        if self.formatting == "alpaca":
            return {**(ALPACA if self.columns is None else self.columns), "messages": None}
        return ({"messages": "conversations"} if self.columns is None else self.columns) | (self.tags or {})

    @property
    def hosted(self) -> Hosted | None:
        """What it names on a hub; None when it names a file."""
        hubs = self.hf_hub_url, self.ms_hub_url
        return Hosted(*hubs, self.split, self.subset, self.folder) if any(hubs) else None

    @model_validator(mode="after")
    def _is_enough(self) -> Self:
        if not self.hosted and (self.split != "train" or not self.file_name):
            raise ValueError("split: a file has train alone" if self.file_name else "file_name: it is missing")
        needed = ["response"] if self.formatting == "alpaca" else ["messages"]
        if self.tags and self.formatting != "alpaca":
            needed += ["role_tag", "content_tag", "user_tag", "assistant_tag"]
        if missing := [key for key in needed if not self.form.get(key)]:
            raise ValueError(f"no column or tag is named as {missing[0]}")
        return self


@dataclass(frozen=True)
class Source:
    """A file of rows, or a folder of files; how many rows are drawn (None: all are taken); what a dataset_info.json
    says: their form, and whether rows are drawn twice where there are too few; and of a hub's dataset its files and
    commit.
    """

    path: Path
    rows: int | None = None
    form: Form | None = None
    repeats: bool = False
    files: tuple[Path, ...] = ()
    commits: Commits = field(default_factory=dict)

    def read(self) -> Iterator[tuple[Path, Row]]:
        """Each row, and the file that it is in; raises as `read_rows`."""
        inside = self.files or sorted(self.path.glob("[!.]*")) if self.path.is_dir() else [self.path]
        yield from ((file, row) for file in inside for row in read_rows(file))


def find_sources(
    data: list[str],
    data_dir: Path | None,
    option: str = "--data",
    workspace: Path = Path(),
    pinned: Commits | None = None,
) -> list[Source]:
    """The files of `--data FILE[:ROWS]`, of a name in the dataset_info.json of `--data-dir`, or of a hub's dataset,
    `[HUB:]OWNER/NAME[@REVISION][#ROWS]`, which is fetched into the workspace, at the commit that it is `pinned` to.

    Raises YiTuneError if there are none. `option` is what the user gave them by.
    """
    info = _dataset_info(data_dir) if data_dir else {}

    def fetched(hosted: Hosted, rows: int | None, form: Form | None = None, *, repeats: bool = False) -> Source:
        files, commits = hosted.fetch(workspace, pinned or {})
        return Source(Path(*commits), rows, form, repeats, tuple(files), commits)

    sources = []
    for text in data:
        name, rows = text, None
        if (match := re.fullmatch(r"(.+)[:#]([1-9]\d*)", text)) and text not in info and not Path(text).exists():
            name, rows = match[1], int(match[2])
        if data_dir and name in info:
            entry = _entry(name, info[name], data_dir)
            drawn, repeats = rows or entry.num_samples, rows is None
            if entry.hosted:
                sources.append(fetched(entry.hosted, drawn, entry.form, repeats=repeats))
            else:
                sources.append(Source(data_dir / entry.file_name, drawn, entry.form, repeats))
        elif Path(name).is_file():
            sources.append(Source(Path(name), rows))
        elif Path(name).is_dir():
            hint = _("Name each of its files, with its own {option}.").format(option=option)
            raise YiTuneError("{option} {name} is a folder.", hint, option=option, name=name)
        elif hosted := _hosted(name):
            hub, repository, revision = hosted.groups()
            huggingface, modelscope = (None if hub == other else repository for other in ("modelscope", "huggingface"))
            sources.append(fetched(Hosted(huggingface, modelscope, revision=revision), rows))
        elif (of := re.split("[:#][^:#]*$", name)[0]) != name and (of in info or Path(of).is_file() or _hosted(of)):
            hint = _("Write a sample as FILE:ROWS or OWNER/NAME#ROWS, with ROWS from 1 on.")
            raise YiTuneError("{option} {name} does not end in a number of rows.", hint, option=option, name=name)
        else:
            said = _("{option} {name}: no such file.").format(option=option, name=name)
            if data_dir:
                said = _("{option} {name}: no such file, and not in {data_dir}'s dataset_info.json.").format(
                    option=option, name=name, data_dir=data_dir
                )
            usual = _("Name a file by its path from the current folder, a hub's dataset as huggingface:OWNER/NAME.")
            raise YiTuneError(said, did_you_mean(name, sorted(info)) or usual)
    return sources


def _hosted(name: str) -> re.Match[str] | None:
    """The hub, repository and revision of a hub's dataset; None for what was meant to be a file."""
    file = name.lower().endswith(ENDINGS) or Path(name).parent.is_dir()
    hosted = _HOSTED.fullmatch(name)
    return hosted if hosted and (hosted[1] or not file) else None


def _dataset_info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        return {name: dict(entry) for name, entry in json.loads(path.read_text(encoding="utf-8-sig")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = _("{path} cannot be read as a mapping of names to datasets: {error}.").format(path=path, error=error)
        raise YiTuneError(message, "--data-dir names the folder that holds it, in LLaMA-Factory's format.") from None


def _entry(name: str, content: dict[str, Any], folder: Path) -> Entry:
    """A dataset as LLaMA-Factory's dataset_info.json describes it. Raises YiTuneError for one that is not to be had."""
    try:
        entry = Entry(**content)
        here = entry.hosted or (folder / entry.file_name).exists()
        wrong = (
            ""
            if here
            else _("file_name: {file_name!r} is not in {folder}").format(file_name=entry.file_name, folder=folder)
        )
    except ValidationError as error:
        entry, first = None, error.errors()[0]
        wrong = ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
    if not (entry and entry.hosted) and (elsewhere := [key for key in _ELSEWHERE if key in content]):
        wrong = _("{key}: yi-tune takes files, and datasets of Hugging Face and ModelScope").format(key=elsewhere[0])
    if wrong or entry is None:
        raise YiTuneError(
            "The dataset {name!r} cannot be trained on: {wrong}.",
            "Mend {folder}/dataset_info.json.",
            name=name,
            wrong=wrong,
            folder=folder,
        )
    return entry


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, one at a time, with a YiTuneError in place of a broken one; raises one for a broken file."""
    readers = dict(zip(ENDINGS, (_jsonl, _json, _csv, _parquet), strict=True))
    ending = path.suffix.lower()
    if ending not in readers:
        raise YiTuneError(
            "{path} is none of {readers}.",
            "Save it as one of them, CSV for example.",
            path=path,
            readers=", ".join(readers),
        )
    try:
        yield from readers[ending](path)
    except UnicodeDecodeError:
        raise YiTuneError("{path} is not UTF-8.", "Save it as UTF-8: yi-tune reads nothing else.", path=path) from None
    except OSError as error:
        raise YiTuneError(
            "{path} cannot be read: {reason}.", "Is that the right file?", path=path, reason=error.strerror or error
        ) from None
    except (ValueError, RecursionError) as error:
        remedy = _("Mend that place, or copy the file anew: the rows after it cannot be read.")
        raise YiTuneError(
            _("{path} is broken: {error}.").format(path=path, error=str(error).rstrip(".")), remedy
        ) from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row: Any
                try:
                    row = json.loads(line.decode("utf-8-sig").rstrip())
                except json.JSONDecodeError as error:
                    row = YiTuneError("broken JSON: {msg} at column {colno}", msg=error.msg, colno=error.colno)
                except UnicodeDecodeError:
                    row = YiTuneError("not UTF-8: save the file as UTF-8")
                except (ValueError, RecursionError) as error:  # a number of too many digits
                    row = YiTuneError(str(error))
                yield _("line {number}").format(number=number), row


def _json(path: Path) -> Iterator[Row]:
    """An array of rows. A file that does not begin as one is read as JSON lines, which are often called .json too."""
    with path.open(encoding="utf-8-sig") as file:
        while (first := file.read(1)).isspace():
            pass
        if first != "[":
            _check_object(path, first + file.readline())
            yield from _jsonl(path)
            return
        file.seek(0)
        yield from ((_("row {number}").format(number=number), row) for number, row in enumerate(json.load(file), 1))


def _check_object(path: Path, line: str) -> None:
    """Raise YiTuneError for a file that is one object, and neither rows nor, as its first `line` tells, JSON lines."""
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if not isinstance(row, dict) or not any(isinstance(value, list) and len(row) == 1 for value in row.values()):
            return
        if "messages" in row or "conversations" in row:
            return
    with suppress(ValueError, RecursionError):
        keys = ", ".join(json.loads(path.read_text(encoding="utf-8-sig")))
        raise YiTuneError(
            "{path} is one object with {keys}, and no list of rows.",
            "Save the rows as a list, [row, row, ...], or a row a line.",
            path=path,
            keys=keys,
        )


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(16_000_000)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns = next((cells for cells in map(_stripped, reader) if any(cells)), [])
        if len(columns) == 1 and (other := re.search("[;\t]", columns[0])):
            raise YiTuneError(
                "{path} has {other!r} between its columns.",
                "Save it with commas between them.",
                path=path,
                other=other[0],
            )
        while columns and not columns[-1].strip():  # Excel may end every line with some commas
            columns.pop()
        line = reader.line_num + 1
        try:
            for cells in reader:
                if len(cells) >= len(columns) and any(cells) and not any(cells[len(columns) :]):
                    yield _("line {number}").format(number=line), dict(zip(columns, cells, strict=False))
                elif any(cells):
                    yield (
                        _("line {number}").format(number=line),
                        YiTuneError("{cells} cells under {columns} columns", cells=len(cells), columns=len(columns)),
                    )
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"line {line}: {error}") from None


def _stripped(cells: list[str]) -> list[str]:
    return [cell.strip() for cell in cells]


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        number = 0
        for group in range(file.num_row_groups):  # all at once they take more memory the more there are
            # Its threads read ahead, as far as chance has it.
            for batch in file.iter_batches(batch_size=256, row_groups=[group], use_threads=False):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield _("row {number}").format(number=number), row
