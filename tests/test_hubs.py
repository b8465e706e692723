"""Downloads through the hubs' real clients from two small hubs on loopback, in this process."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hubs import ALWAYS, HUBS, Fault, Hub, HuggingFace, ModelScope
from tests.hubs.machine import NOBODY
from tests.hubs.models import UNWANTED, YI_TOKENIZER, nano_tokenizer, sharded, yi_tokenizer
from yi_tune import hubs
from yi_tune.errors import YiTuneError
from yi_tune.hubs.download import download
from yi_tune.models import check_model, find_model
from yi_tune.output import err

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
SHARDS = [name for name in MODEL if name.endswith(".safetensors")]
SECRET = "hf_Qx7vZk2Lm9"  # noqa: S105
BOTH = pytest.mark.parametrize("name", HUBS)
Point = Callable[..., None]


@pytest.fixture(autouse=True)
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Point]:
    """Points the hubs' clients at servers, or where none is named at nobody, with homes and caches of their own."""
    from modelscope_hub.config import set_default_config

    def point(**addresses: str) -> None:
        monkeypatch.setattr(hubs.HuggingFace, "endpoint", addresses.get("huggingface", NOBODY))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", addresses.get("modelscope", NOBODY))
        monkeypatch.setenv("HF_ENDPOINT", "asked first")
        set_default_config(None)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope_home"))
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN"):
        monkeypatch.delenv(variable, raising=False)
    point()
    yield point
    set_default_config(None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Where the model is to lie."""
    return tmp_path / "workspace" / "models" / "Yi-1.5-6B-Chat"


def fetch(model: Path, source: str = "auto", name: str = "yi-1.5-6b-chat", **options: object) -> None:
    download(find_model(name, model.parents[1]), source, err, **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    """The files that a load may read in a model folder; the rest is yi-tune's."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in MODEL}


def is_whole(model: Path) -> bool:
    check_model(find_model("yi-1.5-6b-chat", model.parents[1]))
    return True


@BOTH
def test_whole_model_is_fetched_once(name: str, point: Point, model: Path) -> None:
    with HUBS[name](MODEL | UNWANTED) as hub:
        point(**{name: hub.address})
        fetch(model, name)
        assert content(model) == MODEL
        assert {path.name for path in model.iterdir()} == {*MODEL, "download.json"}
        recorded = json.loads((model / "download.json").read_text())["files"]
        assert {file: entry["sha256"] for file, entry in recorded.items()} == {file: hub.digest(file) for file in MODEL}
        assert not [unwanted for unwanted in UNWANTED if hub.fetched(unwanted)]
        assert {file: len(hub.fetched(file)) for file in MODEL} == dict.fromkeys(MODEL, 1)
        asked = len(hub.log)
        fetch(model)
        assert len(hub.log) == asked


@BOTH
def test_revision_and_commit_are_recorded(name: str, point: Point, model: Path) -> None:
    with HUBS[name](MODEL) as hub:
        point(**{name: hub.address})
        with pytest.raises(YiTuneError, match="v9"):
            fetch(model, name, revision="v9")
        fetch(model, name)
        first = json.loads((model / "download.json").read_text())
        assert (first["source"], first["repository"], first["revision"]) == (name, hub.repository, None)
        assert re.fullmatch(r"[0-9a-f]{40}", first["commit"])
        # Another revision takes its place; the commit that is here already asks nobody.
        fetch(model, name, revision="v1")
        record = json.loads((model / "download.json").read_text())
        assert record["revision"] == "v1"
        asked = len(hub.log)
        fetch(model, revision=record["commit"])
        assert len(hub.log) == asked
    assert content(model) == MODEL
    assert [path.name for path in model.parent.iterdir() if not path.name.startswith(".")] == [model.name]


@pytest.mark.alone
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("dead", HUBS)
def test_auto_with_one_hub_down(
    dead: str, silent: bool, point: Point, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alive = next(name for name in HUBS if name != dead)
    with socket.create_server(("127.0.0.1", 0)) as listener, HUBS[alive](MODEL) as hub:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}" if silent else NOBODY
        point(**{dead: nobody, alive: hub.address})
        began = time.monotonic()
        fetch(model)
        assert time.monotonic() - began < 10
        assert content(model) == MODEL
        # Said of the hub that was down, if it was asked at all.
        assert alive == "huggingface" or f"Hugging Face did not give it: {nobody} gives no" in capfd.readouterr().err
        # Alone, it is given up on as soon.
        began = time.monotonic()
        with pytest.raises(YiTuneError, match=f"{nobody} gives no whole answer"):
            fetch(model, dead, "yi-1.5-9b-chat")
        assert time.monotonic() - began < 20


def test_auto_leaves_a_hub_that_gives_wrong_bytes(point: Point, model: Path) -> None:
    with HuggingFace(MODEL) as first, ModelScope(MODEL) as second:
        first.faults = [Fault(f"*{SHARDS[1]}*", "flip", ALWAYS, at=5000)]
        point(huggingface=first.address, modelscope=second.address)
        fetch(model)
    assert content(model) == MODEL


@BOTH
def test_token_is_used_and_never_shown(
    name: str, point: Point, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with HUBS[name](MODEL, token=SECRET) as hub:
        point(**{name: hub.address})
        for token in ("", "hf_Wrong5ecret"):
            monkeypatch.setenv(hub.token_variable, token)
            point(**{name: hub.address})
            with pytest.raises(YiTuneError) as caught:
                fetch(model, name)
            assert hub.token_variable in caught.value.hint
            assert "hf_Wrong5ecret" not in caught.value.message + caught.value.hint
        monkeypatch.setenv(hub.token_variable, SECRET)
        point(**{name: hub.address})
        fetch(model, name)
        # The CDN is another host: it gets none.
        assert [request for request in hub.log if request.host.startswith("localhost")]
        assert not hub.leaks
    assert SECRET not in "".join(capfd.readouterr())
    written = [path for path in model.parents[2].rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert content(model) == MODEL


@BOTH
def test_login_of_the_hubs_client(name: str, point: Point, model: Path, tmp_path: Path) -> None:
    from modelscope_hub.config import HubConfig

    with HUBS[name](MODEL, token=SECRET) as hub:
        point(**{name: hub.address})
        (tmp_path / "token").write_text(SECRET)
        HubConfig().save_token(SECRET)
        point(**{name: hub.address})
        fetch(model, name)
        assert not hub.leaks
    assert content(model) == MODEL


def fill_cache(name: str, hub: Hub, point: Point) -> None:
    """Have the hub's own client download into its cache."""
    from huggingface_hub import snapshot_download
    from modelscope_hub import HubApi

    point(**{name: hub.address})
    if name == "huggingface":
        snapshot_download(hub.repository, endpoint=hub.address)
    else:
        HubApi().download_repo(hub.repository, "model")


@BOTH
def test_copy_in_the_hubs_cache_is_used_in_place(name: str, point: Point, model: Path) -> None:
    with HUBS[name](MODEL) as hub:
        fill_cache(name, hub, point)
        asked = len(hub.log)
        fetch(model)
        assert len(hub.log) == asked
    # No second copy of the weights.
    assert {path.name for path in model.iterdir() if path.is_symlink()} == set(MODEL)
    assert is_whole(model)


@BOTH
@pytest.mark.parametrize("size", [None, 1000])
def test_damaged_copy_in_the_hubs_cache(size: int | None, name: str, point: Point, model: Path, tmp_path: Path) -> None:
    """One that is cut short is not used; a wrong byte is found by --verify."""
    with HUBS[name](MODEL) as hub:
        fill_cache(name, hub, point)
        if size is None:
            fetch(model, name)
        cached = next((tmp_path / name).rglob(SHARDS[1])).resolve()
        damaged = (MODEL[SHARDS[1]][:-1] + b"x")[:size]
        cached.write_bytes(damaged)
        fetch(model, name, verify=size is None)
    assert content(model) == MODEL
    assert cached.read_bytes() == damaged  # the cache is the hub's own to mend


@BOTH
def test_verify(name: str, point: Point, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with HUBS[name](MODEL) as hub:
        point(**{name: hub.address})
        fetch(model, name)
        before = len(hub.log)
        fetch(model, name, verify=True)
        assert len(hub.log) == before
        (model / SHARDS[2]).write_bytes(MODEL[SHARDS[2]][:-1] + b"x")
        fetch(model, name, verify=True)
        assert SHARDS[2] in capfd.readouterr().err
        assert content(model) == MODEL
        assert {request.file for request in hub.log[before:] if request.sent} & set(SHARDS) == {SHARDS[2]}


def test_real_tokenizer(point: Point, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not YI_TOKENIZER.is_dir():
        pytest.skip(f"the real Yi tokenizer is not at {YI_TOKENIZER}")
    files = sharded(yi_tokenizer(), vocab=64000, hidden=64)
    with HuggingFace(files) as hub:
        point(huggingface=hub.address)
        fetch(model)
    # Told what was corrected; the weights and the SentencePiece model are as the hub gave them.
    assert "Tokenizer corrected" in capfd.readouterr().err
    unchanged = {file: text for file, text in files.items() if file != "tokenizer_config.json"}
    assert {file: (model / file).read_bytes() for file in unchanged} == unchanged
    assert is_whole(model)


@pytest.mark.parametrize("layout", ["models/01ai--Yi-1.5-6B-Chat/snapshots/master", "hub/01ai/Yi-1___5-6B-Chat"])
def test_modelscope_cache_of_today_and_of_2024(layout: str, tmp_path: Path) -> None:
    copy = tmp_path / "modelscope" / layout
    copy.mkdir(parents=True)
    (copy / "config.json").write_text("{}")
    assert hubs.ModelScope("01ai/Yi-1.5-6B-Chat", None).cached() == [copy]
    assert hubs.ModelScope("01ai/Yi-1.5-6B-Chat", "v2").cached() == []
