import csv
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data import own
from yi_tune.data.forms import Source
from yi_tune.data.own import OwnData, check_rows, describe, prepare_own
from yi_tune.errors import YiTuneError
from yi_tune.files import DATA


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
    return prepare_own([str(file)], None, config, skip_bad_rows=skip_bad_rows)


def test_good_rows_of_several_files(file: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("instruction,output\nq,a\n")
    found = check_rows([Source(file), Source(tmp_path / "more.csv")], tmp_path)
    assert (found.rows, found.bad, found.reasons) == (21, 0, [])
    conversations = list(found.dataset.conversations())
    assert conversations[3] == [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "答3"}]
    assert len(conversations) == 21


# In a process of its own, whose peak it prints in bytes.
PEAK = """
import sys
from pathlib import Path
from yi_tune.data.forms import Source
from yi_tune.data.own import check_rows
found = check_rows([Source(Path(sys.argv[1]), int(sys.argv[2]) or None)], Path())
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(found.rows, found.bad, int(peak.split()[1]) * 1024)
"""


@pytest.mark.parametrize(("kind", "sample"), [("jsonl", 0), ("jsonl", 500), ("csv", 0), ("parquet", 0)])
def test_memory_does_not_grow_with_the_rows(kind: str, sample: int, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        file = tmp_path / f"{rows}.{kind}"
        write(file, rows)
        command = [sys.executable, "-c", PEAK, str(file), str(sample)]
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
    drawn = [questions(check_rows([Source(file, 5)], tmp_path)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != [f"q{number}" for number in range(5)]
    assert len(set(drawn[0])) == 5
    assert check_rows([Source(file, 20)], tmp_path).rows == 20
    with pytest.raises(YiTuneError, match="has 20 good rows; 21 are asked for"):
        check_rows([Source(file, 21)], tmp_path)


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
    assert questions(prepare(file, skip_bad_rows=True)) == ["q0", "q1"]
    assert "Leaving out 12 bad rows" in capsys.readouterr().err


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
    (reason,) = check_rows([Source(file)], tmp_path).reasons
    assert reason.isprintable()
    reason.encode()


def test_places_that_cannot_be_used(file: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(YiTuneError, match="cannot be read"):
        check_rows([Source(file.with_name("none.jsonl"))], model)
    full = file.with_name("full")
    full.mkdir()
    (full / "rows.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(full))
    with pytest.raises(YiTuneError, match="full cannot be written: No space left") as caught:
        check_rows([Source(file)], model)
    assert "TMPDIR" in caught.value.hint


def test_description(file: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = OwnData(file.parent, 100, 0, [], list(range(1, 101)), 100)
    assert describe(own, 90) == (
        "own data: 100 rows; tokens: min 1, median 50, max 100; 10.0% longer than cutoff_len 90 and cut to it"
    )
    assert "100,000 rows; tokens (of 100 rows): min 1, median 50, max 987;" in describe(
        replace(own, rows=100_000, longest=987), 90
    )
    prepare(file, cutoff_len="long", max_samples=15)  # of which the first is reported by the checks of the config
    said = capsys.readouterr().err
    assert "own data: 20 rows; tokens: min " in said
    assert "max_samples leaves out 5 of them" in said


def test_of_many_rows_some_are_counted_and_the_longest(
    file: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(file.read_text(encoding="utf-8") + row(20) + row(21, input="long " * 500), encoding="utf-8")
    every = check_rows([Source(file)], model)
    assert (len(every.lengths), every.longest) == (22, max(every.lengths))
    monkeypatch.setattr(own, "_COUNTED", 5)
    some = check_rows([Source(file)], model)
    assert some.lengths == every.lengths[::5]
    assert some.longest == every.longest > max(some.lengths)
    # Without a tokenizer nothing is counted.
    (model / "tokenizer.json").unlink()
    assert (check_rows([Source(file)], model).lengths, check_rows([Source(file)], model).longest) == ([], 0)
