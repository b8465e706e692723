"""Where `--data` is, and its files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_forms import talk
from yi_tune.data.forms import conversation
from yi_tune.data.rows import Source, find_sources, read_rows
from yi_tune.errors import YiTuneError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two files of rows."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b:7"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def listed(folder: Path, **entries: Any) -> Path:
    """A folder whose dataset_info.json has these entries."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "rows.json").write_text("[]")
    (folder / "data" / "dataset_info.json").write_text(json.dumps(entries))
    return folder / "data"


def test_files_and_samples(folder: Path) -> None:
    assert find_sources(["a.jsonl", "a.jsonl:5", "b:7", "b:7:3"], None) == [
        Source(Path("a.jsonl")),
        Source(Path("a.jsonl"), 5),
        Source(Path("b:7")),
        Source(Path("b:7"), 3),
    ]


def test_names_of_a_dataset_info(folder: Path) -> None:
    data = listed(
        folder,
        plain={"file_name": "rows.json"},
        sampled={"file_name": "rows.json", "num_samples": 9},
        mapped={"file_name": "rows.json", "columns": {"prompt": "q", "response": "a", "images": "shots"}},
        everything={"file_name": "."},
    )
    names = ["plain", "sampled", "sampled:4", "mapped", "a.jsonl", "everything"]
    sources = find_sources(names, data)
    assert [source.rows for source in sources] == [None, 9, 4, None, None, None]
    assert {source.path for source in sources} == {data / "rows.json", Path("a.jsonl"), data}
    assert [source.repeats for source in sources[:3]] == [True, True, False]
    with pytest.raises(YiTuneError, match="it has shots"):
        conversation({"q": "q", "a": "a", "shots": ["x.png"]}, sources[3].form)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("none.jsonl:5", "--data none.jsonl: no such file"),
        ("a.jsonl:0", "--data a.jsonl:0 does not end in a number of rows"),
        ("plain:all", "plain:all does not end in a number"),
        ("lilei/rows#x", "lilei/rows#x does not end in a number"),
        ("huggingface:lilei/rows@v1#", "v1# does not end in a number"),
        ("lilei/none.jsonl:x", "no such file"),
        (".", "--data . is a folder"),
        ("plian", "not in "),
        ("remote", "om_hub_url: yi-tune takes files"),
        ("script", "script_url: yi-tune takes files"),  # where LLaMA-Factory takes the script
        ("nothing", "file_name: "),
        ("gone", "file_name: 'gone.json' is not in"),
        ("ranked", "ranking: Input should be False"),
        ("odd", "formatting: Input should be 'alpaca'"),
        ("part", "split: "),
        ("unnamed", "no column or tag is named as response"),
        ("untagged", "no column or tag is named as assistant_tag"),
    ],
)
def test_data_that_is_not_there_or_not_described(data: str, said: str, folder: Path) -> None:
    entries: dict[str, dict[str, Any]] = {
        "plain": {},
        "gone": {"file_name": "gone.json"},
        "ranked": {"ranking": True},
        "odd": {"formatting": "x"},
        "part": {"split": "test"},
        "script": {"script_url": "some/where"},
        "unnamed": {"columns": {"prompt": "q"}},
        "untagged": {"formatting": "sharegpt", "tags": {"role_tag": "r", "content_tag": "c", "user_tag": "u"}},
    }
    entries = {name: {"file_name": "rows.json", **entry} for name, entry in entries.items()}
    info = listed(folder, remote={"om_hub_url": "some/where"}, nothing={}, **entries)
    with pytest.raises(YiTuneError) as caught:
        find_sources([data], info)
    assert said in caught.value.message
    assert caught.value.hint
    if data == "plian":
        assert caught.value.hint == "Did you mean plain?"


def test_missing_file_where_no_data_is_described(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="no such file") as caught:
        find_sources(["gone.jsonl"], None)
    assert caught.value.hint.startswith("Name a file by its path")


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}'])
def test_broken_dataset_info(content: str, folder: Path) -> None:
    (folder / "dataset_info.json").write_text(content)
    for data_dir in (folder, folder / "none"):
        with pytest.raises(YiTuneError, match=r"dataset_info\.json cannot be read"):
            find_sources(["a"], data_dir)


# Files


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


def test_one_object_is_no_list_of_rows(tmp_path: Path) -> None:
    for indent in (None, 2):
        with pytest.raises(YiTuneError, match="is one object with data, and no list of rows") as caught:
            read(tmp_path, "x.json", json.dumps({"data": GOOD}, indent=indent))
        assert "Save the rows as a list" in caught.value.hint
    row = {"messages": talk("q", "a")}
    assert read(tmp_path, "x.json", json.dumps(row)) == [("line 1", row)]


def test_bad_lines_do_not_stop_the_others(tmp_path: Path) -> None:
    text = b'{"a": \n{"a": "\xff"}\n' + b"[" * 90_000 + b'\n{"a": 1}\n' + b"1" * 5000
    found = read(tmp_path, "x.jsonl", text)
    assert [where for where, _ in found] == [f"line {number}" for number in range(1, 6)]
    said = [row for _, row in found]
    assert said[0] == "broken JSON: Expecting value at column 6"
    assert said[1] == "not UTF-8: save the file as UTF-8"
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
    # Excel's, with columns and rows that are empty.
    expected = [
        ("line 2", {"a": "1", "b": "2"}),
        ("line 4", {"a": "3", "b": ""}),
        ("line 5", "3 cells under 2 columns"),
    ]
    assert read(tmp_path, "x.csv", "a,b,,\n1,2,,\n,,,\n3,,,\n4,5,6\n") == expected
    assert read(tmp_path, "x.csv", "a\n" + "x" * 200_000) == [("line 2", {"a": "x" * 200_000})]
    assert read(tmp_path, "x.csv", "") == []
    assert read(tmp_path, "x.csv", "\n,,\n a , b\n1,2\n") == [("line 4", {"a": "1", "b": "2"})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a,b\n1,2\n"3,4\n5,6\n', "line 3: .* Mend that place"),
        ("a;b\n1;2\n", "';' between its columns.* commas"),
        ("a\tb\n1\t2\n", "between its columns.* commas"),
    ],
)
def test_broken_csv(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(YiTuneError) as caught:
        read(tmp_path, "x.csv", text)
    assert re.search(said, f"{caught.value.message} {caught.value.hint}")


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
        assert (
            read(tmp_path, "x.jsonl", '{"a": "你好"}\n'.encode(encoding))[0][1] == "not UTF-8: save the file as UTF-8"
        )
