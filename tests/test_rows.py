import json
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data.rows import read_rows
from yi_tune.errors import YiTuneError


def read(tmp_path: Path, name: str, content: str | bytes) -> list[Any]:
    """The places in a file of that content, and the row or its error at each."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(where, row.message if isinstance(row, YiTuneError) else row) for where, row in read_rows(path)]


GOOD = [{"a": "你好 🚀"}, {"a": "two\nlines"}, {"a": ""}]


def test_json_lines(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in GOOD)
    numbered = [(f"line {number}", row) for number, row in enumerate(GOOD, 1)]
    assert read(tmp_path, "x.jsonl", text) == numbered
    assert read(tmp_path, "x.JSONL", "\ufeff" + text.replace("\n", "\r\n") + "\r\n") == numbered
    # Often called .json.
    assert read(tmp_path, "x.json", text) == numbered
    assert read(tmp_path, "x.jsonl", '{"a": "\u2028"}\n\n \n{}\n') == [("line 1", {"a": "\u2028"}), ("line 4", {})]


def test_json_array(tmp_path: Path) -> None:
    numbered = [(f"row {number}", row) for number, row in enumerate(GOOD, 1)]
    assert read(tmp_path, "x.json", json.dumps(GOOD)) == numbered
    assert read(tmp_path, "x.json", "\ufeff" + json.dumps(GOOD, indent=2).replace("\n", "\r\n")) == numbered
    assert read(tmp_path, "x.json", " [ ] \n") == []
    assert read(tmp_path, "x.json", '[1, "x", null]') == [("row 1", 1), ("row 2", "x"), ("row 3", None)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1}\n{"a": 2}]', "x.json is broken: Expecting ',' delimiter: line 2 column 1"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ("[" + "1" * 5000 + "]", "4300 digits"),
    ],
)
def test_broken_json_array(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(YiTuneError) as caught:
        read(tmp_path, "x.json", text)
    assert said in caught.value.message
    assert caught.value.hint


def test_bad_lines_do_not_stop_the_others(tmp_path: Path) -> None:
    text = b'{"a": \n{"a": "\xff"}\n' + b"[" * 90_000 + b'\n{"a": 1}\n' + b"1" * 5000
    found = read(tmp_path, "x.jsonl", text)
    assert [where for where, _ in found] == [f"line {number}" for number in range(1, 6)]
    said = [row for _, row in found]
    assert said[0] == "broken JSON: Expecting value at column 6"
    assert "can't decode byte 0xff" in said[1]
    assert "maximum recursion depth exceeded" in said[2]
    assert said[3] == {"a": 1}
    assert "4300 digits" in said[4]


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
    assert read(tmp_path, "x.csv", "a\n" + "x" * 200_000) == [("line 2", {"a": "x" * 200_000})]
    assert read(tmp_path, "x.csv", "") == []


def test_broken_csv(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="line 3: "):
        read(tmp_path, "x.csv", 'a,b\n1,2\n"3,4\n5,6\n')


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    table = pyarrow.table({"messages": [[{"role": "user", "content": "hi"}], None], "n": [1, 2]})
    write_table(table, tmp_path / "x.parquet")
    assert list(read_rows(tmp_path / "x.parquet")) == [
        ("row 1", {"messages": [{"role": "user", "content": "hi"}], "n": 1}),
        ("row 2", {"messages": None, "n": 2}),
    ]
    with pytest.raises(YiTuneError, match="is broken: "):
        read(tmp_path, "broken.parquet", b"PAR1 and no more")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match=r"none of \.jsonl, \.json, \.csv, \.parquet"):
        read(tmp_path, "x.txt", "hello")
    with pytest.raises(YiTuneError, match="cannot be read"):
        list(read_rows(tmp_path / "none.jsonl"))
    for encoding in ("utf-16", "gbk"):
        for name in ("x.json", "x.csv"):
            with pytest.raises(YiTuneError, match="is not UTF-8") as caught:
                read(tmp_path, name, '[{"a": "你好"}]\n'.encode(encoding))
            assert "Save it as UTF-8" in caught.value.hint
        assert "'utf-8' codec" in read(tmp_path, "x.jsonl", '{"a": "你好"}\n'.encode(encoding))[0][1]
