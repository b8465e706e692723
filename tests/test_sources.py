import json
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data.forms import Form, conversation
from yi_tune.data.sources import Source, find_sources
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
        mapped={"file_name": "rows.json", "columns": {"prompt": "q", "response": "a"}},
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
    assert sources[0].form == Form()
    rows = {
        3: {"q": "q", "a": "a"},
        4: {"talk": [{"who": "me", "says": "q"}, {"who": "bot", "says": "a"}]},
        5: {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        6: {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    }
    for number, row in rows.items():
        assert [message["content"] for message in conversation(row, sources[number].form)] == ["q", "a"]
        assert [message["role"] for message in conversation(row, sources[number].form)] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("none.jsonl", "no such file"),
        ("none.jsonl:5", "--data none.jsonl: no such file"),
        ("a.jsonl:0", "a sample of no rows"),
        (".", ". is a folder"),
        ("plian", "not in "),
        ("remote", "names no file_name"),
        ("gone", "there is no file"),
        ("ranked", "preferences"),
        ("odd", "formatting 'x'"),
    ],
)
def test_what_is_not_there(data: str, said: str, folder: Path) -> None:
    info = listed(
        folder,
        plain={"file_name": "rows.json"},
        remote={"hf_hub_url": "some/where"},
        gone={"file_name": "gone.json"},
        ranked={"file_name": "rows.json", "ranking": True},
        odd={"file_name": "rows.json", "formatting": "x"},
    )
    with pytest.raises(YiTuneError) as caught:
        find_sources([data], info)
    assert said in caught.value.message
    assert caught.value.hint
    if data == "plian":
        assert caught.value.hint == "Did you mean plain?"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"columns": ["q"]}, "its columns are no mapping"),
        ({"tags": None}, "its tags are no mapping"),
        ({"num_samples": "5"}, "num_samples is '5'"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"formatting": ["alpaca"]}, "formatting ['alpaca'] is none of"),
    ],
)
def test_broken_entry(broken: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(YiTuneError) as caught:
        find_sources(["mine"], listed(folder, mine={"file_name": "rows.json", **broken}))
    assert said in caught.value.message


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "{"])
def test_broken_dataset_info(content: str, folder: Path) -> None:
    (folder / "dataset_info.json").write_text(content)
    with pytest.raises(YiTuneError, match=r"dataset_info\.json"):
        find_sources(["a"], folder)
    with pytest.raises(YiTuneError, match="cannot be read"):
        find_sources(["a"], folder / "none")
