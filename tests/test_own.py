import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from yi_tune.config import Config
from yi_tune.data import own
from yi_tune.data.own import OwnData, bad_rows, check_rows, describe, own_data
from yi_tune.data.sources import Source
from yi_tune.errors import YiTuneError


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
def config(tmp_path: Path) -> Config:
    """A config for a model of which only the tokenizer is there."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return {"model_name_or_path": str(tmp_path / "model"), "template": "yi", "cutoff_len": 1024}


def questions(data: OwnData) -> list[str]:
    return [messages[0]["content"] for messages in data.dataset.conversations()]


def test_good_rows_of_several_files(file: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("instruction,output\nq,a\n")
    checked = check_rows([Source(file), Source(tmp_path / "more.csv")], tmp_path / "good")
    assert (checked.rows, checked.bad, checked.reasons) == (21, 0, [])
    lines = (tmp_path / "good").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[3]) == {
        "messages": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "答3"}]
    }
    assert len(lines) == 21
    assert not list(tmp_path.glob("*.part"))


# In a process of its own, whose peak it prints in bytes.
PEAK = """
import sys
from pathlib import Path
from yi_tune.data.own import check_rows
from yi_tune.data.sources import Source
checked = check_rows([Source(Path(sys.argv[1]), int(sys.argv[2]) or None)], Path(sys.argv[3]))
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(checked.rows, checked.bad, int(peak.split()[1]) * 1024)
"""


@pytest.mark.parametrize("sample", [0, 500])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
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
        elif kind == "json":
            file.write_text(json.dumps(list(answers)))
        elif kind == "csv":
            with file.open("w", newline="") as lines:
                table = csv.DictWriter(lines, ["instruction", "output"])
                table.writeheader()
                table.writerows(answers)
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(answers)), file, row_group_size=5000)

    few, many = peak(20_000), peak(100_000)
    assert many < few + 20_000_000  # the rows between take 50 MB as text


def test_sample_is_drawn_the_same_every_time(file: Path, tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        assert check_rows([Source(file, 5)], tmp_path / name).rows == 5
        drawn.append((tmp_path / name).read_text(encoding="utf-8"))
    assert drawn[0] == drawn[1]
    assert drawn[0].splitlines() != file.read_text(encoding="utf-8").splitlines()[:5]
    assert len(set(drawn[0].splitlines())) == 5
    with pytest.raises(YiTuneError, match="has 20 good rows; 21 are asked for"):
        check_rows([Source(file, 21)], tmp_path / "three")


def test_first_ten_bad_rows_are_listed(file: Path, tmp_path: Path, config: Config) -> None:
    bad = "".join(row(number, tools="x") for number in range(12))
    file.write_text(row(0) + bad + row(1), encoding="utf-8")
    with pytest.raises(YiTuneError) as caught:
        own_data([Source(file)], config, tmp_path, skip_bad_rows=False)
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 of 14 rows of --data cannot be trained on:"
    assert lines[1] == f"  {file}, line 2: it has tools; only text is trained on"
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 12
    assert "--skip-bad-rows" in caught.value.hint
    data = own_data([Source(file)], config, tmp_path, skip_bad_rows=True)
    assert questions(data) == ["q0", "q1"]
    assert (data.checked.rows, data.checked.bad) == (2, 12)
    assert bad_rows(data.checked, [Source(Path("other name"))]).startswith("\n  other name, line 2: it has")


def test_no_good_row(file: Path, tmp_path: Path, config: Config) -> None:
    file.write_text("\n")
    with pytest.raises(YiTuneError, match="no row in --data"):
        own_data([Source(file)], config, tmp_path, skip_bad_rows=True)
    file.write_text('{"q": "\\u001b[31m\\n"}\n')
    with pytest.raises(YiTuneError, match="None of the 1 rows") as caught:
        own_data([Source(file)], config, tmp_path, skip_bad_rows=True)
    assert "dataset_info.json" in caught.value.hint


def test_reasons_can_be_printed(file: Path, tmp_path: Path) -> None:
    file.write_text('{"\\u001b[31m\\n\\udcff": 1}\n')
    ((_, _, reason),) = check_rows([Source(file)], tmp_path / "good").reasons
    assert reason.isprintable()
    reason.encode()


def test_rows_are_checked_once(file: Path, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own_data([Source(file)], config, tmp_path, skip_bad_rows=False)
    monkeypatch.setattr(own, "check_rows", lambda *_: pytest.fail("checked again"))
    assert own_data([Source(file)], config, tmp_path, skip_bad_rows=False) == first
    # Content decides, not its name, nor its time.
    other = file.rename(tmp_path / "moved.jsonl")
    os.utime(other, (1, 1))
    assert own_data([Source(other)], config, tmp_path, skip_bad_rows=False) == first


@pytest.mark.parametrize("what", ["content", "sample", "tokenizer", "cutoff_len"])
def test_a_change_is_noticed(what: str, file: Path, tmp_path: Path, config: Config) -> None:
    first = own_data([Source(file)], config, tmp_path, skip_bad_rows=False)
    source = Source(file)
    if what == "content":  # the same size at the same time
        before = file.stat()
        file.write_text(file.read_text(encoding="utf-8").replace("q7", "Q7"), encoding="utf-8")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_size == before.st_size
    elif what == "sample":
        source = Source(file, 3)
    elif what == "tokenizer":
        (tmp_path / "model" / "tokenizer.json").write_text("{ }")
    else:
        config = config | {"cutoff_len": 512}
    second = own_data([source], config, tmp_path, skip_bad_rows=False)
    assert second.folder != first.folder
    assert ("Q7" in questions(second)) == (what == "content")


def test_what_was_cut_short_is_done_again(file: Path, tmp_path: Path, config: Config) -> None:
    first = own_data([Source(file)], config, tmp_path, skip_bad_rows=False)
    (first.folder / "checked.json").unlink()
    (first.folder / "rows.jsonl").write_text("half")
    assert len(questions(own_data([Source(file)], config, tmp_path, skip_bad_rows=False))) == 20


def test_cache_does_not_grow_for_ever(file: Path, tmp_path: Path, config: Config) -> None:
    made = []
    for number in range(6):
        data = own_data([Source(file, number + 1)], config, tmp_path, skip_bad_rows=False)
        os.utime(data.folder, (number, number))
        made.append(data.folder)
        if number:  # the first is in use all the time
            own_data([Source(file, 1)], config, tmp_path, skip_bad_rows=False)
    kept = [folder for folder in made if folder.exists()]
    assert len(kept) == own._KEPT
    assert made[0] in kept
    assert made[-1] in kept


def test_places_that_cannot_be_used(file: Path, tmp_path: Path, config: Config) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(YiTuneError, match="cannot be written"):
        own_data([Source(file)], config, tmp_path, skip_bad_rows=False)
    with pytest.raises(YiTuneError, match="cannot be read"):
        own_data([Source(tmp_path / "none.jsonl")], config, tmp_path / "else", skip_bad_rows=False)


def test_description() -> None:
    lengths = tuple(range(1, 101))
    assert describe(lengths, 90) == (
        "own data: 100 rows; tokens: min 1, median 50, p95 95, max 100; 10 longer than cutoff_len 90 and cut to it"
    )
    assert describe((7,), 1024) == "own data: 1 rows; tokens: min 7, median 7, p95 7, max 7; cutoff_len 1,024"
