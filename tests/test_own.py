import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data import own
from yi_tune.data.identity import Dataset
from yi_tune.data.own import prepare_own
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


def questions(data: Dataset) -> list[str]:
    return [messages[0]["content"] for messages in data.conversations()]


def prepare(file: Path, *more: str, skip_bad_rows: bool = False, **config: Any) -> tuple[Dataset, int]:
    config |= {"model_name_or_path": str(file.parent / "model")}
    return prepare_own([str(file), *more], None, config, skip_bad_rows=skip_bad_rows)


def test_good_rows_of_several_files(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more.csv").write_text("instruction,output\nq,a\n")
    found, tokens = prepare(file, str(tmp_path / "more.csv"))
    conversations = list(found.conversations())
    assert conversations[3] == [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "答3"}]
    assert found.rows == len(conversations) == 21
    # Without a tokenizer bytes are counted, of which nothing is said.
    longest = "<|im_start|>user\nq10<|im_end|>\n<|im_start|>assistant\n答10<|im_end|>\n"
    assert max(tokens) == len(longest.encode())
    assert "own data" not in capsys.readouterr().err


# In a process of its own, whose peak is printed in bytes after each file.
PEAK = """
import sys
from yi_tune.data.own import prepare_own
for file in sys.argv[1:]:
    found, _ = prepare_own([file], None, {"model_name_or_path": "none"}, skip_bad_rows=False)
    (peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(found.rows, int(peak.split()[1]) * 1024)
"""


@pytest.mark.parametrize(("kind", "sample"), [("jsonl", 100), ("parquet", 0)])
def test_memory_does_not_grow_with_the_rows(kind: str, sample: int, tmp_path: Path) -> None:
    def write(rows: int) -> Path:
        file = tmp_path / f"{rows}.{kind}"
        answers = ({"instruction": f"question {number}", "output": f"{number} " * 1250} for number in range(rows))
        if kind == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in answers))
        else:
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(answers)), file, row_group_size=500)
        return file

    sizes = (10_000, 20_000)  # pyarrow's allocator holds some groups of rows by then
    files = [f"{write(rows)}:{sample}" if sample else str(write(rows)) for rows in sizes]
    done = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True, check=True)
    (few, low), (many, high) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert [few, many] == ([sample] * 2 if sample else [*sizes])
    assert high < low + 20_000_000  # the rows between take 75 MB as text


def test_sample_is_drawn_the_same_every_time(file: Path) -> None:
    drawn = [questions(prepare(file, f"{file}:5")[0])[20:] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != [f"q{number}" for number in range(5)]
    assert len(set(drawn[0])) == 5
    with pytest.raises(YiTuneError, match="has 20 good rows; 21 are asked for"):
        prepare(file, f"{file}:21")


def test_first_ten_bad_rows_are_listed(file: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "".join(row(number, tools="x") for number in range(12))
    file.write_text(row(0) + bad + row(1), encoding="utf-8")
    with pytest.raises(YiTuneError) as caught:
        prepare(file)
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 of 14 rows of --data cannot be trained on:"
    assert lines[1] == f"  {file}, line 2: it has tools; only text is trained on, and all of it alike"
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 12
    assert "--skip-bad-rows" in caught.value.hint
    assert questions(prepare(file, skip_bad_rows=True)[0]) == ["q0", "q1"]
    assert "Leaving out 12 bad rows" in capsys.readouterr().err


def test_no_good_row(file: Path, model: Path) -> None:
    file.write_text("\n")
    with pytest.raises(YiTuneError, match="no row in --data"):
        prepare(file, skip_bad_rows=True)
    file.write_text('{"\\u001b[31m\\n\\udcff": 1}\n')
    with pytest.raises(YiTuneError, match="1 of 1 rows") as caught:
        prepare(file, skip_bad_rows=True)
    assert "dataset_info.json" in caught.value.hint
    # What is quoted of a row can be printed.
    reason = caught.value.message.splitlines()[1]
    assert reason.isprintable()
    reason.encode()


def test_max_samples_draws_from_all_files(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more.jsonl").write_text("".join(map(row, range(20, 40))), encoding="utf-8")
    found, lengths = prepare(file, str(tmp_path / "more.jsonl"), max_samples=10)
    numbers = sorted(int(question[1:]) for question in questions(found))
    assert len(set(numbers)) == found.rows == len(lengths) == 10
    assert numbers[0] < 20 <= numbers[-1]
    assert "max_samples: 10 of 40 rows of --data are used" in capsys.readouterr().err
    assert prepare(file, max_samples=20)[0].rows == 20


def test_a_listed_sample_may_be_larger_than_its_file(file: Path, tmp_path: Path) -> None:
    info = {"mine": {"file_name": file.name, "num_samples": 30}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    found, _ = prepare_own(["mine"], tmp_path, {"model_name_or_path": "none"}, skip_bad_rows=False)
    assert found.rows == 30
    assert len(set(questions(found))) == 20
    with pytest.raises(YiTuneError, match="20 good rows; 30 are asked for"):
        prepare_own(["mine:30"], tmp_path, {"model_name_or_path": "none"}, skip_bad_rows=False)


@pytest.mark.parametrize("config", [{"cutoff_len": 20}, {"train_on_prompt": True}])
def test_answer_that_is_not_learned_is_not_cut_off_nor_trained_on(
    config: dict[str, Any], file: Path, model: Path
) -> None:
    contents = ("q", "long " * 20, "r", "a")
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": text, "weight": int(index == 3)}
        for index, text in enumerate(contents)
    ]
    file.write_text(json.dumps({"messages": messages}))
    assert prepare(file)[0].rows == 1
    with pytest.raises(YiTuneError, match="an answer that is not to be learned") as caught:
        prepare(file, **config)
    assert "cutoff_len" in caught.value.hint


def test_what_is_not_trained_on_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(row(1, id=7, reasoning="because") + row(2, id=8, note=None), encoding="utf-8")
    prepare(file)
    assert "Not trained on: id, reasoning." in capsys.readouterr().err


def test_description(
    file: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("".join(map(row, range(9))) + row(9, input="long " * 500) * 3, encoding="utf-8")
    lengths = prepare(file, cutoff_len=100)[1]
    longest = max(lengths)
    assert len(lengths) == 12
    said = capsys.readouterr().err
    assert f"own data: 12 rows; tokens: min 16, median 16, max {longest:,}; 25.0% longer than cutoff_len 100" in said
    # Of many rows some are counted, and the longest.
    monkeypatch.setattr(own, "_COUNTED", 4)
    assert prepare(file, cutoff_len=9)[1][0] == longest > 500
    said = f"tokens (of 4 rows): min 16, median 16, max {longest:,}; 100.0%"
    assert said in " ".join(capsys.readouterr().err.split())
    # The checks of the config report it.
    assert max(prepare(file, cutoff_len="long")[1]) == longest
