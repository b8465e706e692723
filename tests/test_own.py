import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data import own
from yi_tune.data.forms import Source
from yi_tune.data.own import OwnData, check_rows, describe, own_data, prepare_own
from yi_tune.errors import YiTuneError
from yi_tune.resources import DATA


def row(number: int, **more: Any) -> str:
    """A line with a good row."""
    return json.dumps({"instruction": f"q{number}", "output": f"答{number}", **more}, ensure_ascii=False) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of twenty good rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(map(row, range(20))), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of which only the tokenizer is there."""
    (tmp_path / "model").mkdir()
    return Path(shutil.copy(DATA / "nano" / "tokenizer.json", tmp_path / "model")).parent


def questions(data: OwnData) -> list[str]:
    return [messages[0]["content"] for messages in data.dataset.conversations()]


def prepare(file: Path, *, skip_bad_rows: bool = False, **config: Any) -> OwnData:
    config |= {"model_name_or_path": str(file.parent / "model")}
    return prepare_own([str(file)], None, config, file.parent, skip_bad_rows=skip_bad_rows)


def test_good_rows_of_several_files(file: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("instruction,output\nq,a\n")
    checked = check_rows([Source(file), Source(tmp_path / "more.csv")], tmp_path / "good")
    assert checked == {"rows": 21, "bad": 0, "reasons": []}
    lines = (tmp_path / "good").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[3]) == {
        "messages": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "答3"}]
    }
    assert len(lines) == 21


# In a process of its own, whose peak it prints in bytes.
PEAK = """
import sys
from pathlib import Path
from yi_tune.data.own import check_rows
from yi_tune.data.forms import Source
found = check_rows([Source(Path(sys.argv[1]), int(sys.argv[2]) or None)], Path(sys.argv[3]))
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(found["rows"], found["bad"], int(peak.split()[1]) * 1024)
"""


@pytest.mark.parametrize(("kind", "sample"), [("jsonl", 0), ("jsonl", 500), ("csv", 0), ("parquet", 0)])
def test_memory_does_not_grow_with_the_rows(kind: str, sample: int, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        file = tmp_path / f"{rows}.{kind}"
        write(file, rows)
        command = [sys.executable, "-c", PEAK, str(file), str(sample), str(tmp_path / "good")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        good, bad, size = map(int, done.stdout.split())
        assert (good, bad) == (sample or rows, 0)
        return size

    def write(file: Path, rows: int) -> None:
        answers = ({"instruction": f"question {number}", "output": f"{number} " * 250} for number in range(rows))
        if kind == "jsonl":
            with file.open("w") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in answers)
        elif kind == "csv":
            with file.open("w", newline="") as lines:
                table = csv.DictWriter(lines, ["instruction", "output"])
                table.writeheader()
                table.writerows(answers)
        else:
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(answers)), file, row_group_size=5000)

    rows = 20_000 if kind == "parquet" else 10_000  # pyarrow holds some groups of rows
    few, many = peak(rows), peak(5 * rows)
    assert many < few + 20_000_000  # the rows between take 50 MB as text


def test_sample_is_drawn_the_same_every_time(file: Path, tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        assert check_rows([Source(file, 5)], tmp_path / name)["rows"] == 5
        drawn.append((tmp_path / name).read_text(encoding="utf-8").splitlines())
    assert drawn[0] == drawn[1]
    assert drawn[0] != file.read_text(encoding="utf-8").splitlines()[:5]
    assert len(set(drawn[0])) == 5
    assert check_rows([Source(file, 20)], tmp_path / "all")["rows"] == 20
    with pytest.raises(YiTuneError, match="has 20 good rows; 21 are asked for"):
        check_rows([Source(file, 21)], tmp_path / "three")


def test_first_ten_bad_rows_are_listed(file: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "".join(row(number, tools="x") for number in range(12))
    file.write_text(row(0) + bad + row(1), encoding="utf-8")
    with pytest.raises(YiTuneError) as caught:
        prepare(file)
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 of 14 rows of --data cannot be trained on:"
    assert lines[1] == f"  {file}, line 2: it has tools; only text is trained on"
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 12
    assert "--skip-bad-rows" in caught.value.hint
    # Of the same content under another name, which is what the cache holds, the other name is told.
    data = prepare(file.rename(file.with_name("other.jsonl")), skip_bad_rows=True)
    assert questions(data) == ["q0", "q1"]
    assert "other.jsonl, line 2: it has" in capsys.readouterr().err


def test_no_good_row(file: Path, model: Path) -> None:
    file.write_text("\n")
    with pytest.raises(YiTuneError, match="no row in --data"):
        prepare(file, skip_bad_rows=True)
    file.write_text('{"q": "\\u001b[31m\\n"}\n')
    with pytest.raises(YiTuneError, match="None of the 1 rows") as caught:
        prepare(file, skip_bad_rows=True)
    assert "dataset_info.json" in caught.value.hint


def test_reasons_can_be_printed(file: Path, tmp_path: Path) -> None:
    file.write_text('{"\\u001b[31m\\n\\udcff": 1}\n')
    ((_, _, reason),) = check_rows([Source(file)], tmp_path / "good")["reasons"]
    assert reason.isprintable()
    reason.encode()


def test_rows_are_checked_and_counted_once(
    file: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = own_data([Source(file)], model, tmp_path)
    assert len(first.lengths) == 20
    monkeypatch.setattr(own, "check_rows", lambda *_: pytest.fail("checked again"))
    assert own_data([Source(file)], model, tmp_path) == first
    # Content decides, not its name, nor its time.
    other = file.rename(tmp_path / "moved.jsonl")
    os.utime(other, (1, 1))
    assert own_data([Source(other)], model, tmp_path) == first


@pytest.mark.parametrize("what", ["content", "sample", "tokenizer"])
def test_a_change_is_noticed(what: str, file: Path, model: Path, tmp_path: Path) -> None:
    first = own_data([Source(file)], model, tmp_path)
    source = Source(file, 3 if what == "sample" else None)
    if what == "content":  # the same size at the same time
        before = file.stat()
        file.write_text(file.read_text(encoding="utf-8").replace("q7", "Q7"), encoding="utf-8")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_size == before.st_size
    elif what == "tokenizer":
        (model / "tokenizer.json").unlink()
    second = own_data([source], model, tmp_path)
    assert second.folder != first.folder
    assert ("Q7" in questions(second)) == (what == "content")
    assert bool(second.lengths) == (what != "tokenizer")


def test_nothing_half_done_is_left(file: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(own, "count_tokens", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            own_data([Source(file)], model, tmp_path)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(questions(own_data([Source(file)], model, tmp_path))) == 20


def test_cache_does_not_grow_for_ever(file: Path, model: Path, tmp_path: Path) -> None:
    made = []
    for number in range(6):
        data = own_data([Source(file, number + 1)], model, tmp_path)
        os.utime(data.folder, (number, number))
        made.append(data.folder)
        if number:  # the first is in use all the time
            own_data([Source(file, 1)], model, tmp_path)
    kept = [folder for folder in made if folder.exists()]
    assert len(kept) == own._KEPT
    assert made[0] in kept
    assert made[-1] in kept


def test_places_that_cannot_be_used(file: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(YiTuneError, match="cannot be written"):
        own_data([Source(file)], model, tmp_path)
    with pytest.raises(YiTuneError, match="cannot be read"):
        own_data([Source(tmp_path / "none.jsonl")], model, tmp_path / "else")


def test_description(file: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe(list(range(1, 101)), 90) == (
        "own data: 100 rows; tokens: min 1, median 50, p95 95, max 100; 10 longer than cutoff_len 90 and cut to it"
    )
    assert describe([7], 1024) == "own data: 1 rows; tokens: min 7, median 7, p95 7, max 7; cutoff_len 1,024"
    prepare(file, cutoff_len="long", max_samples=15)  # of which the first is reported by the checks of the config
    said = capsys.readouterr().err
    assert "own data: 20 rows; tokens: min " in said
    assert "max_samples leaves out 5 of them" in said
