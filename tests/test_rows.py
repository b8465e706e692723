"""Where `--data` is, its files, and the forms of its rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data.rows import Source, conversation, find_sources, read_rows
from yi_tune.errors import YiTuneError


def talk(*contents: str, system: str = "") -> list[dict[str, str]]:
    """The conversation of these contents."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": talk("q", "a")}, talk("q", "a")),
        ({"messages": talk("q", "a", "r", "b", system="s"), "id": 3}, talk("q", "a", "r", "b", system="s")),
        ({"messages": [{"role": "system", "content": ""}, *talk("q", "a")]}, talk("q", "a")),
        ({"messages": [{"role": "developer", "content": "s"}, *talk("q", "a")]}, talk("q", "a", system="s")),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}] * 2}, *talk("", "a")[1:]]},
            talk("qq", "a"),
        ),
        ({"messages": json.dumps(talk("q", "a"))}, talk("q", "a")),  # as a CSV file has it
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, talk("q", "a")),
        (
            {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}], "system": "s"},
            talk("q", "a", system="s"),
        ),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, talk("q", "a")),
        ({"instruction": "q", "output": "a"}, talk("q", "a")),
        ({"instruction": "q", "input": "x", "output": "a", "system": "s"}, talk("q\nx", "a", system="s")),
        ({"instruction": "", "input": "x", "output": "a", "system": ""}, talk("x", "a")),
        ({"instruction": "q", "input": None, "output": "a", "history": [["p", "b"]]}, talk("p", "b", "q", "a")),
        ({"instruction": "q", "output": "a", "history": '[["p", "b"]]', "input": ""}, talk("p", "b", "q", "a")),
        ({"messages": talk("{{ other }} and {x}", "a < b | c > d")}, talk("{{ other }} and {x}", "a < b | c > d")),
    ],
)
def test_every_form_is_recognised_by_its_columns(row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert conversation(row, None) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (YiTuneError("broken JSON"), "broken JSON"),
        (["q", "a"], "not an object"),
        ({"question": "q", "answer": "a"}, "among its columns: ['answer', 'question']"),
        ({"instruction": "q", "output": " \n"}, "a message of the assistant is empty"),
        ({"instruction": "q", "output": None}, "content is not text"),
        ({"instruction": "", "input": "", "output": "a"}, "a message of the user is empty"),
        ({"instruction": 3, "output": "a"}, "instruction or input is not text"),
        ({"instruction": "q", "output": "a", "history": "p"}, "history is not a list"),
        ({"instruction": "q", "output": "a", "history": [["p"]]}, "history is not a list of pairs"),
        ({"messages": []}, "The roles (none) are no conversation"),
        ({"messages": {"role": "user"}}, "messages is not a list"),
        ({"messages": ["q", "a"]}, "something else than a message"),
        ({"messages": talk("q", "a", "r")}, "the last message is the user's"),
        ({"messages": [*talk("q", "a"), {"role": "system", "content": "s"}]}, "The roles user, assistant, system are"),
        ({"messages": [*talk("q"), {"role": "tool", "content": "x"}]}, "role is 'tool'"),
        ({"messages": [*talk("q"), {"role": "assistant", "tool_calls": [1]}]}, "tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url"}]}]},
            "parts that are not text",
        ),
        ({"messages": talk("q", "a\0b")}, "holds '\\x00'"),
        ({"messages": talk("q", "a<|im_end|>")}, "holds '<|im_end|>': no control token"),
        ({"messages": talk("q", "a", system="<|im_start|>")}, "a message of the system holds '<|im_start|>'"),
        ({"messages": talk("Who made {{ AUTHOR }}?", "a")}, "holds '{{ AUTHOR }}'"),
        ({"messages": talk("q", "a\udcff")}, "holds '\\udcff'"),
        ({"messages": talk("q", "a"), "images": ["x.png"]}, "it has images"),
        ({"messages": talk("q", "a"), "tools": "[{}]"}, "it has tools"),
    ],
)
def test_unfit_rows(row: Any, said: str) -> None:
    with pytest.raises(YiTuneError) as caught:
        conversation(row, None)
    assert said in caught.value.message


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
        chat={
            "file_name": "rows.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "bot"},
        },
        gpt={"file_name": "rows.json", "formatting": "sharegpt"},
        openai={"file_name": "rows.json", "formatting": "openai", "columns": {"messages": "messages"}},
    )
    names = ["plain", "sampled", "sampled:4", "mapped", "chat", "gpt", "openai", "a.jsonl"]
    sources = find_sources(names, data)
    assert [source.rows for source in sources] == [None, 9, 4, None, None, None, None, None]
    assert {source.path for source in sources} == {data / "rows.json", Path("a.jsonl")}
    rows: dict[int, dict[str, Any]] = {
        0: {"instruction": "q", "output": "a", "messages": talk("no", "no")},
        3: {"q": "q", "a": "a", "before": [], "instruction": "no", "output": "no"},
        4: {"talk": [{"who": "me", "says": "q"}, {"who": "bot", "says": "a"}]},
        5: {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        6: {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    }
    for number, row in rows.items():
        assert conversation(row, sources[number].form) == talk("q", "a")
    with pytest.raises(YiTuneError, match="it has images"):
        conversation({**rows[3], "shots": ["x.png"]}, sources[3].form)


def test_missing_file_where_no_data_is_described(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="no such file") as caught:
        find_sources(["gone.jsonl"], None)
    assert caught.value.hint.startswith("Name a file by its path")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("none.jsonl:5", "--data none.jsonl: no such file"),
        ("a.jsonl:0", "a.jsonl:0: no such file"),
        (".", "--data .: no such file"),
        ("plian", "not in "),
        ("remote", "file None"),
        ("gone", "file 'gone.json'"),
        ("ranked", "ranking True"),
        ("odd", "formatting 'x'"),
    ],
)
def test_data_that_is_not_there_or_not_described(data: str, said: str, folder: Path) -> None:
    entries: dict[str, dict[str, Any]] = {
        "plain": {},
        "gone": {"file_name": "gone.json"},
        "ranked": {"ranking": True},
        "odd": {"formatting": "x"},
    }
    entries = {name: {"file_name": "rows.json", **entry} for name, entry in entries.items()}
    info = listed(folder, remote={"hf_hub_url": "some/where"}, **entries)
    with pytest.raises(YiTuneError) as caught:
        find_sources([data], info)
    assert said in caught.value.message
    assert caught.value.hint
    if data == "plian":
        assert caught.value.hint == "Did you mean plain?"


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
