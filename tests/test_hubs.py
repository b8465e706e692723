"""Downloads through the hubs' real clients from two small hubs on loopback, in this process."""

import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hubs import ALWAYS, HUBS, Fault, Hub, HuggingFace, ModelScope
from tests.hubs.machine import NOBODY
from tests.hubs.models import UNWANTED, nano_tokenizer, sharded
from yi_tune import hubs
from yi_tune.errors import YiTuneError
from yi_tune.hubs.download import download, use_cached
from yi_tune.models import CATALOGUE, Origin, find_model, read_origin
from yi_tune.output import err
from yi_tune.weights import check_model

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
SHARDS = [name for name in MODEL if name.endswith(".safetensors")]
SECRET = "hf_Qx7vZk2Lm9"  # noqa: S105
BOTH = pytest.mark.parametrize("name", HUBS)
Point = Callable[..., None]


@pytest.fixture
def model(point: Point, tmp_path: Path) -> Path:
    """Where the model is to lie; nobody is asked for it yet."""
    return tmp_path / "workspace" / "models" / "Yi-1.5-6B-Chat"


def fetch(model: Path, source: str = "auto", **options: object) -> None:
    download(find_model("yi-1.5-6b-chat", model.parents[1]), source, err, **options)  # type: ignore[arg-type]


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
        # Another revision takes its place, which until then is as it was; what they share is not fetched again.
        sent, other = hub.sent, MODEL["tokenizer.json"] + b"\n"
        hub.change("tokenizer.json", other)
        hub.fail(Fault("*tokenizer.json*", "status", ALWAYS, status=403))
        with pytest.raises(YiTuneError, match="gated"):
            fetch(model, name, revision="v1")
        assert is_whole(model)
        assert content(model) == MODEL
        hub.fail()
        fetch(model, name, revision="v1")
        assert (model / "tokenizer.json").read_bytes() == other
        assert hub.sent == sent + len(other)
        record = json.loads((model / "download.json").read_text())
        # It stays at its revision, and the commit that is here already asks nobody.
        (model / SHARDS[0]).unlink()
        fetch(model, name)
        assert json.loads((model / "download.json").read_text()) == record
        assert record["revision"] == "v1"
        asked = len(hub.log)
        fetch(model, revision=record["commit"])
        assert len(hub.log) == asked
    assert [path.name for path in model.parent.iterdir() if not path.name.startswith(".")] == [model.name]


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("dead", HUBS)
def test_one_hub_down(dead: str, silent: bool, point: Point, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alive = next(name for name in HUBS if name != dead)
    with socket.create_server(("127.0.0.1", 0)) as listener, HUBS[alive](MODEL) as hub:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}" if silent else NOBODY
        point(**{dead: nobody, alive: hub.address})
        began = time.monotonic()
        if dead == "modelscope":  # which is asked second: only if it is named
            with pytest.raises(YiTuneError, match=f"{nobody} cannot be reached"):
                fetch(model, dead)
        fetch(model)
        assert time.monotonic() - began < (20 if dead == "modelscope" else 10)
        assert content(model) == MODEL
        # Said of the hub that was down, if it was asked at all.
        assert alive == "huggingface" or f"Hugging Face did not give it: {nobody} cannot" in capfd.readouterr().err


def test_both_hubs_down(model: Path) -> None:
    with pytest.raises(YiTuneError, match=r"could not be downloaded\. Hugging Face: .* ModelScope: ") as caught:
        fetch(model)
    assert all(f"{variable}=https" in caught.value.hint for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"))


def test_auto_leaves_a_hub_that_gives_wrong_bytes(point: Point, model: Path) -> None:
    with HuggingFace(MODEL) as first, ModelScope(MODEL) as second:
        first.faults = [Fault(f"*{SHARDS[1]}*", "flip", ALWAYS, at=5000)]
        point(huggingface=first.address, modelscope=second.address)
        fetch(model)
    assert content(model) == MODEL


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, "huggingface"),
        ({"HF_ENDPOINT": "https://a.mirror"}, "huggingface"),
        ({"MODELSCOPE_DOMAIN": "a.site"}, "modelscope"),
        ({"MODELSCOPE_ENDPOINT": "https://a.site"}, "modelscope"),
        ({"MODELSCOPE_ENDPOINT": "https://a.site", "HF_ENDPOINT": "https://a.mirror"}, "huggingface"),
    ],
)
def test_order_of_the_hubs(variables: dict[str, str], first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN", "MODELSCOPE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    order = [hub.name for hub in hubs.hubs_of(CATALOGUE["yi-1.5-6b-chat"], None)]
    assert order == sorted(HUBS, key=lambda name: name != first)


@BOTH
def test_token_is_used_and_never_shown(
    name: str,
    point: Point,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """That of the environment, or of a login with the hub's own client."""
    from modelscope_hub.config import HubConfig

    with HUBS[name](MODEL, token=SECRET) as hub:
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
        shutil.rmtree(model)
        monkeypatch.delenv(hub.token_variable)
        (tmp_path / "token").write_text(SECRET)
        HubConfig().save_token(SECRET)
        point(**{name: hub.address})
        fetch(model, name)
        # The CDN is another host: it gets none.
        assert [request for request in hub.log if request.host.startswith("localhost")]
        assert not hub.leaks
    assert SECRET not in "".join(capfd.readouterr())
    written = [path for path in model.parents[1].rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
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
def test_copy_in_the_hubs_cache_is_used_in_place(name: str, point: Point, model: Path, tmp_path: Path) -> None:
    local = find_model("yi-1.5-6b-chat", model.parents[1])
    with HUBS[name](MODEL | UNWANTED) as hub:
        fill_cache(name, hub, point)
        asked = len(hub.log)
        use_cached(local, err)
        fetch(model)
        assert len(hub.log) == asked
        # No second copy of the weights.
        assert {path.name for path in model.iterdir() if path.is_symlink()} == set(MODEL)
        assert is_whole(model)
        # When it is gone from the cache it is no model any more, and comes from the hub.
        shutil.rmtree(tmp_path / name)
        assert not local.downloaded
        fetch(model, name)
    assert content(model) == MODEL


@BOTH
@pytest.mark.parametrize("size", [None, 1000])
def test_damaged_copy_in_the_hubs_cache(size: int | None, name: str, point: Point, model: Path, tmp_path: Path) -> None:
    """One that is cut short is not used; a wrong byte is found by --verify."""
    with HUBS[name](MODEL) as hub:
        fill_cache(name, hub, point)
        if size is None:
            fetch(model)
            sent = hub.sent
            fetch(model, name, verify=True)
            assert hub.sent == sent
            # ModelScope's cache has no checksums: the hub is asked for them, and they are kept.
            origin = read_origin(model)
            assert origin
            assert all(file.sha256 for file in origin.files.values())
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
        point()
        with pytest.raises(YiTuneError, match="no whole answer"):
            fetch(model, name, verify=True)
        # It is no model while nobody mends it.
        with pytest.raises(YiTuneError, match="not downloaded"):
            is_whole(model)
        point(**{name: hub.address})
        fetch(model, name)
        assert f"Damaged, to be fetched again: {SHARDS[2]}" in capfd.readouterr().err
        assert content(model) == MODEL
        assert {request.file for request in hub.log[before:] if request.sent} & set(SHARDS) == {SHARDS[2]}


def test_disk_too_small_and_what_lies_there_already(point: Point, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = model.with_name(f"{model.name}.part")
    part.mkdir(parents=True)
    (part / SHARDS[0]).write_bytes(MODEL[SHARDS[0]])
    (part / "tokenizer.json").write_bytes(MODEL["tokenizer.json"][:-1] + b"x")
    (part / "model-00001-of-00002.safetensors.incomplete").touch()
    missing = sum(map(len, MODEL.values())) - sum(path.stat().st_size for path in part.iterdir())
    usage = shutil.disk_usage(part)
    with HuggingFace(MODEL) as hub:
        point(huggingface=hub.address)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=missing - 1))
        with pytest.raises(YiTuneError, match="are needed") as caught:
            fetch(model, "huggingface")
        assert "--workspace" in caught.value.hint
        assert hub.sent == 0
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=missing))
        fetch(model, "huggingface")
        assert not hub.fetched(SHARDS[0])
    assert content(model) == MODEL
    assert {path.name for path in model.iterdir()} == {*MODEL, "download.json"}


@pytest.mark.parametrize("repository", ["", "other/Yi-1.5-6B-Chat"])
def test_folder_that_is_another_models_is_not_touched(repository: str, model: Path) -> None:
    model.mkdir(parents=True)
    if repository:
        Origin("huggingface", repository, None, None).write(model)
    (model / "config.json").write_text("mine")
    with pytest.raises(YiTuneError, match=r"no download of yi-1\.5-6b-chat") as caught:
        fetch(model)
    assert f"--model {model}" in caught.value.hint
    assert (model / "config.json").read_text() == "mine"
    assert not find_model("yi-1.5-6b-chat", model.parents[1]).downloaded


def test_nano_and_a_folder_are_only_looked_at(tmp_path: Path) -> None:
    shutil.copytree(CATALOGUE["nano"].path(tmp_path), tmp_path / "mine")
    for name in ("nano", str(tmp_path / "mine")):
        download(find_model(name, tmp_path), "auto", err, verify=True)
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(YiTuneError, match="missing"):
        download(find_model(str(tmp_path / "mine"), tmp_path), "auto", err)


TODAY = "models/01ai--Yi-1.5-6B-Chat/snapshots/master"


@pytest.mark.parametrize(
    "layout",
    [
        TODAY,
        # As the clients 1.9, 1.14, 1.18 and 1.28 were seen to write them, without MODELSCOPE_CACHE and with it.
        *("hub/01ai/Yi-1.5-6B-Chat", "01ai/Yi-1.5-6B-Chat"),
        *("hub/01ai/Yi-1___5-6B-Chat", "01ai/Yi-1___5-6B-Chat"),
        *("hub/models/01ai/Yi-1___5-6B-Chat", "models/01ai/Yi-1___5-6B-Chat"),
    ],
)
@pytest.mark.usefixtures("point")
def test_modelscope_cache_of_today_and_of_2023_to_2025(layout: str, tmp_path: Path) -> None:
    copy = tmp_path / "modelscope" / layout
    copy.mkdir(parents=True)
    (copy / "config.json").write_text("{}")
    assert hubs.ModelScope("01ai/Yi-1.5-6B-Chat", None).cached() == [copy]
    # The old ones do not tell which revision they are.
    assert hubs.ModelScope("01ai/Yi-1.5-6B-Chat", "v2").cached() == []
    # One that is not whole does not hide another.
    other = tmp_path / "modelscope" / "hub/01ai/Yi-1___5-6B-Chat"
    other.mkdir(parents=True, exist_ok=True)
    assert set(hubs.ModelScope("01ai/Yi-1.5-6B-Chat", None).cached()) == {copy, other}
