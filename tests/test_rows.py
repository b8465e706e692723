import json
import time
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data import rows
from yi_tune.data.rows import Repeated, RowError, read_rows
from yi_tune.errors import YiTuneError


def read(tmp_path: Path, name: str, content: str | bytes) -> list[Any]:
    """What is read from a file of that content: where, and the row or what is wrong with it."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(where, str(row) if isinstance(row, RowError) else row) for where, row in read_rows(path)]


GOOD = [{"a": "你好 🚀"}, {"a": "two\nlines"}, {"a": ""}]


def test_json_lines(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in GOOD)
    numbered = [(f"line {number}", row) for number, row in enumerate(GOOD, 1)]
    assert read(tmp_path, "x.jsonl", text) == numbered
    assert read(tmp_path, "x.jsonl", text + "\n") == numbered
    assert read(tmp_path, "x.JSONL", "\ufeff" + text.replace("\n", "\r\n")) == numbered
    # Often called .json.
    assert read(tmp_path, "x.json", text) == numbered
    assert read(tmp_path, "x.jsonl", '{"a": "\u2028"}\n\n \n{}\n') == [("line 1", {"a": "\u2028"}), ("line 4", {})]


def test_json_array(tmp_path: Path) -> None:
    assert [row for _, row in read(tmp_path, "x.json", json.dumps(GOOD))] == GOOD
    lines = read(tmp_path, "x.json", "\ufeff" + json.dumps(GOOD, indent=2).replace("\n", "\r\n"))
    assert lines == [("row 1, line 2", GOOD[0]), ("row 2, line 5", GOOD[1]), ("row 3, line 8", GOOD[2])]
    assert read(tmp_path, "x.json", " [ ] \n") == []
    found = read(tmp_path, "x.json", '[1, "x", null]')
    assert found == [("row 1, line 1", 1), ("row 2, line 1", "x"), ("row 3, line 1", None)]


def test_json_array_larger_than_what_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CHUNK", 7)
    text = json.dumps(GOOD * 5, indent=1, ensure_ascii=False)
    found = read(tmp_path, "x.json", text)
    assert [row for _, row in found] == GOOD * 5
    assert [where for where, _ in found] == [f"row {number}, line {3 * number - 1}" for number in range(1, 16)]
    assert [row for _, row in read(tmp_path, "x.json", "[1234567890123, 12345678]")] == [1234567890123, 12345678]


def test_large_json_array_is_read_about_as_fast_as_json_lines(tmp_path: Path) -> None:
    rows = [{"instruction": f"question {number}", "output": "answer " * 60} for number in range(20_000)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    took = {}
    for name in ("x.jsonl", "x.json"):
        start = time.process_time()
        assert sum(1 for _ in read_rows(tmp_path / name)) == 20_000
        took[name] = time.process_time() - start
    # 100 times as long when each row moved the rest of what had been read.
    assert took["x.json"] < 5 * took["x.jsonl"]


@pytest.mark.parametrize("chunk", [7, 1_000_000])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1}\n{"a": 2}]', "line 2, column 1 (row 1): , or ] is expected, not '{'"),
        ('[{"a": 1},\n{"a": 2]', "line 2, column 8 (row 2): Expecting ',' delimiter"),
        ('[{"a": 1},\n]', "line 2, column 1 (row 2): Expecting value"),
        ('[{"a": 1}\n', "line 2, column 1 (row 1): , or ] is expected, not its end"),
        ('[{"a": 1}] x', "line 1, column 12 (row 1): the array ends before it"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "1" * 5000 + "]", "a number of too many digits"),
    ],
)
def test_broken_json_array(chunk: int, text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CHUNK", chunk)
    with pytest.raises(YiTuneError) as caught:
        read(tmp_path, "x.json", text)
    assert said in caught.value.message
    assert caught.value.hint


def test_bad_lines_do_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_LONGEST", 100_000)
    text = b'{"a": \n{"a": "\xff"}\n' + b"[" * 90_000 + b"\n" + b"x" * 200_001 + b'\n{"b": 1, "b": 2}\n{"a": 1}\n'
    text += b"1" * 5000
    found = read(tmp_path, "x.jsonl", text)
    assert [where for where, _ in found] == [f"line {number}" for number in range(1, 8)]
    said = [row for _, row in found]
    assert said[0] == "broken JSON: Expecting value at column 1" or "broken JSON" in said[0]
    assert said[1] == {"a": "\udcff"}
    assert said[2] == "nested too deeply"
    assert said[3] == "longer than 100,000 bytes"
    assert isinstance(said[4], Repeated)
    assert said[5] == {"a": 1}
    assert said[6] == "a number of too many digits"


def test_csv(tmp_path: Path) -> None:
    text = 'a,b\r\n1,"two\r\nlines"\r\n\r\n"x, ""y""",é\r\n'
    expected = [("line 2", {"a": "1", "b": "two\r\nlines"}), ("line 5", {"a": 'x, "y"', "b": "é"})]
    assert read(tmp_path, "x.csv", text) == expected
    assert read(tmp_path, "x.csv", "\ufeff" + text) == expected
    assert read(tmp_path, "x.csv", "a,b\n1\n1,2,3\n1,2\n") == [
        ("line 2", "1 cells under 2 columns"),
        ("line 3", "3 cells under 2 columns"),
        ("line 4", {"a": "1", "b": "2"}),
    ]
    assert read(tmp_path, "x.csv", b"a\n\xff\n") == [("line 2", {"a": "\udcff"})]
    assert read(tmp_path, "x.csv", "a\n" + "x" * 200_000) == [("line 2", {"a": "x" * 200_000})]
    assert read(tmp_path, "x.csv", "") == []


def test_broken_csv(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="line 3: "):
        read(tmp_path, "x.csv", 'a,b\n1,2\n"3,4\n5,6\n')
    with pytest.raises(YiTuneError, match="column 'a' twice"):
        read(tmp_path, "x.csv", "a,b,a\n1,2,3\n")


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    table = pyarrow.table({"messages": [[{"role": "user", "content": "hi"}], None], "n": [1, 2]})
    write_table(table, tmp_path / "x.parquet")
    assert list(read_rows(tmp_path / "x.parquet")) == [
        ("row 1", {"messages": [{"role": "user", "content": "hi"}], "n": 1}),
        ("row 2", {"messages": None, "n": 2}),
    ]
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(YiTuneError, match="column 'a' twice"):
        list(read_rows(tmp_path / "twice.parquet"))
    with pytest.raises(YiTuneError, match="no whole Parquet file"):
        read(tmp_path, "broken.parquet", b"PAR1 and no more")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match=r"none of \.jsonl, \.json, \.csv, \.parquet"):
        read(tmp_path, "x.txt", "hello")
    with pytest.raises(YiTuneError, match="cannot be read"):
        list(read_rows(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_utf_16_is_named(encoding: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="is UTF-16"):
        read(tmp_path, name, ("\ufeff" + '{"a": 1}').encode(encoding))
