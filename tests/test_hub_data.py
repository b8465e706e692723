"""Rows of a hub's dataset, by the hubs' own clients from servers on loopback."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hubs import ALWAYS, HUBS, Fault, Hub
from tests.hubs.huggingface import COMMIT
from tests.hubs.machine import NOBODY
from yi_tune.data.identity import Dataset
from yi_tune.data.own import prepare_own
from yi_tune.errors import YiTuneError
from yi_tune.plan.plan import plan
from yi_tune.plan.settings import TrainPlan

BOTH = pytest.mark.parametrize("name", HUBS)
ID = "lilei/rows"


def rows(*questions: str) -> bytes:
    return "".join(json.dumps({"instruction": text, "output": "答"}) + "\n" for text in questions).encode()


FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train-00001-of-00002.jsonl": rows("b"),
    "data/train-00000-of-00002.jsonl": rows("a1", "a2"),
    "data/test-00000-of-00001.jsonl": rows("c"),
    "images/1.png": b"png",
}
SUBSETS = {
    "README.md": b"---\n{configs: [{config_name: en, data_files: en.*}, {config_name: zh, data_files: zh.*}]}\n---\n",
    "en.jsonl": rows("en"),
    "zh.jsonl": rows("zh"),
}


@pytest.fixture
def serve(point: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A hub of that name which has the files as the dataset."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setattr("yi_tune.hubs.fetch._PAUSES", (0.1,))

    @contextmanager
    def serve(name: str, files: dict[str, bytes]) -> Iterator[Hub]:
        with HUBS[name](files) as hub:
            hub.repository = ID
            point(**{name: hub.address})
            yield hub

    return serve


def prepare(*data: str, data_dir: Path | None = None, **options: Any) -> Dataset:
    return prepare_own([*data], data_dir, {"model_name_or_path": "none"}, skip_bad_rows=False, **options)[0]


def asked(data: Dataset) -> list[str]:
    return [messages[0]["content"] for messages in data.conversations()]


@BOTH
def test_split_comes_once_and_stays(name: str, serve: Any, tmp_path: Path) -> None:
    place = f"datasets/{name}/{ID}/split=train"
    with serve(name, FILES) as hub:
        hub.fail(Fault("*train-00000*", "cut", at=10))
        first = prepare(ID)
        assert asked(first) == ["a1", "a2", "b"]
        assert not any(map(hub.fetched, ("images/1.png", "data/test-00000-of-00001.jsonl")))
        commit = first.commits[place]
        assert len(str(commit)) == 40
        assert (tmp_path / place / "download.json").is_file()
    # Offline, and a sample.
    assert set(asked(prepare(f"{ID}#2"))) < {"a1", "a2", "b"}
    (tmp_path / place / "data" / "train-00000-of-00002.jsonl").write_bytes(rows("a1"))  # cut short
    with pytest.raises(YiTuneError, match="no whole answer"):
        prepare(f"{name}:{ID}")
    with serve(name, FILES):
        assert prepare(ID).file_name == first.file_name
    with serve(name, FILES | {"data/train-00001-of-00002.jsonl": rows("new")}) as hub:
        assert prepare(f"{name}:{ID}").file_name == first.file_name
        assert not hub.log
        shutil.rmtree(tmp_path / "datasets")
        assert asked(prepare(ID)) == ["a1", "a2", "new"]


def test_run_goes_on_at_its_commit(serve: Any, tmp_path: Path) -> None:
    place, older = f"datasets/huggingface/{ID}/split=train", "fedcba9876543210fedcba9876543210fedcba98"

    def planned(**options: Any) -> TrainPlan:
        return plan(None, workspace=tmp_path, model="nano", data=[ID], eval_data=[f"{ID}@v1"], **options)

    with serve("huggingface", FILES):
        first = planned()
        assert first.record["commits"] == {place: COMMIT, f"{place},revision=v1": older}
        first.run.folder.mkdir(parents=True)
        began = {place: older, f"{place},revision=v1": COMMIT}  # since when the tag was moved
        first.run.write("run.json", json.dumps(first.record | {"commits": began}))
        assert planned(fresh=True).record["commits"][place] == COMMIT
        assert planned().record["commits"] == began


@BOTH
def test_entry_of_dataset_info(name: str, serve: Any, tmp_path: Path) -> None:
    key = {"huggingface": "hf_hub_url", "modelscope": "ms_hub_url"}[name]
    split = {"split": "test", "columns": {"prompt": "output", "response": "instruction"}}
    info = {"test": {key: ID, **split}, "zh": {key: ID, "subset": "zh"}, "no": {key: ID, "split": "valid"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    with serve(name, FILES):
        assert asked(prepare("test", data_dir=tmp_path)) == ["答"]
        with pytest.raises(YiTuneError, match="no split 'valid'") as caught:
            prepare("no", data_dir=tmp_path)
        assert "Known: test, train" in caught.value.hint
    with serve(name, SUBSETS):
        assert asked(prepare("zh", data_dir=tmp_path)) == ["zh"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (SUBSETS, "Config name is missing"),
        ({"rows.py": b"raise SystemExit", "a.json": b"[]"}, "scripts are no longer supported"),
        ({"README.md": b"text"}, "any data files"),
        ({"train.jsonl.gz": b"gz"}, r"train\.jsonl\.gz, which is none of"),
        ({"train.zip": b"zip"}, "zip"),
        ({"../../train.jsonl": rows("a")}, "any data file"),
        ({"a.jsonl": b'{"text": "no answer"}\n'}, "neither messages"),
    ],
)
def test_no_rows(files: dict[str, bytes], said: str, serve: Any, tmp_path: Path) -> None:
    with serve("huggingface", files) as hub, pytest.raises(YiTuneError, match=said) as caught:
        prepare(ID)
    assert caught.value.hint
    assert hub.sent < 500
    assert not (tmp_path.parent / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("status", "said"), [(401, "a login for dataset"), (403, "gated"), (404, "there is no dataset")]
)
@BOTH
def test_not_given(name: str, status: int, said: str, serve: Any) -> None:
    with serve(name, FILES) as hub:
        hub.fail(Fault("*", "status", ALWAYS, status=status))
        with pytest.raises(YiTuneError, match=said) as caught:
            prepare(f"{name}:{ID}")
    assert caught.value.hint


@BOTH
def test_nobody_is_there(name: str, point: Callable[..., None]) -> None:
    point()
    with pytest.raises(YiTuneError, match=rf"{NOBODY} cannot be reached .* \(\w+: \[Errno 111\] [\w ]+\)\.$") as caught:
        prepare(f"{name}:{ID}#10")
    assert caught.value.hint.startswith("Check the network, or name a mirror: ")


def test_path_that_is_mistyped_is_asked_of_no_hub(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "lilei").mkdir()
    with serve("huggingface", FILES) as hub:
        for path in (ID, "data/faq.jsonl", "./lilei/rows", "faq"):
            with pytest.raises(YiTuneError, match="no such file"):
                prepare(path)
        assert not hub.log
        assert prepare(f"huggingface:{ID}").rows == 3
