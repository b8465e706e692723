"""What goes wrong on the way from a hub: what the user is told, and what is never taken for a model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hubs import ALWAYS, HUBS, LOGIN, Fault, Hub
from tests.hubs.models import UNWANTED, nano_tokenizer, sharded
from yi_tune.errors import YiTuneError
from yi_tune.hubs.download import download
from yi_tune.models import LocalModel, find_model
from yi_tune.output import err
from yi_tune.weights import check_model

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
SHARD = "model-00002-of-00005.safetensors"
INDEX = "model.safetensors.index.json"
BOTH = pytest.mark.parametrize("name", HUBS)
Fetch = Callable[[Hub], None]


def body(kind: Any, times: int = 1) -> Fault:
    """A fault at a byte of a shard, which has some 300,000."""
    return Fault(f"*{SHARD}*", kind, times, at=100_000)


def status(number: int, times: int = ALWAYS, pattern: str = "*", headers: Mapping[str, str] | None = None) -> Fault:
    return Fault(pattern, "status", times, status=number, headers=headers or {})


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    """Where the model is to lie; and a silent hub is soon given up."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setattr("yi_tune.hubs.fetch._PAUSES", (0.1, 0.2, 0.3, 0.4))
    return find_model("yi-1.5-6b-chat", tmp_path)


@pytest.fixture
def fetch(name: str, point: Callable[..., None], local: LocalModel) -> Fetch:
    """Downloads from a hub that goes by that name."""

    def fetch(hub: Hub) -> None:
        point(**{name: hub.address})
        download(local, name, err)

    return fetch


def lying(folder: Path) -> dict[str, bytes]:
    """What lies in a folder under the names of the model's files."""
    return {name: (folder / name).read_bytes() for name in MODEL if (folder / name).is_file()}


@pytest.mark.parametrize(
    ("name", "faults", "said"),
    [
        ("huggingface", [body("cut")], ""),
        ("modelscope", [body("cut"), body("whole", ALWAYS)], ""),  # and it knows no ranges
        ("modelscope", [body("reset")], ""),
        ("huggingface", [body("stall")], ""),
        ("huggingface", [body("flip")], f"{SHARD} came with another size or checksum"),
        ("modelscope", [body("short")], f"{SHARD} came with another size or checksum"),
        ("modelscope", [status(429, 1, f"*{SHARD}*")], ""),
        ("huggingface", [status(500, 1, f"*{SHARD}*")], ""),
    ],
)
def test_got_over(
    faults: list[Fault], said: str, name: str, local: LocalModel, fetch: Fetch, capfd: pytest.CaptureFixture[str]
) -> None:
    with HUBS[name](MODEL | UNWANTED) as hub:
        hub.fail(*faults)
        fetch(hub)
    assert said in capfd.readouterr().err
    assert lying(local.path) == MODEL
    check_model(local)


@BOTH
@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ([body("cut", ALWAYS)], "no whole answer"),
        ([body("flip", ALWAYS)], f"{SHARD} came with another size or checksum"),
        ([body("short", ALWAYS)], f"{SHARD} came with another size or checksum"),
        ([status(429)], "too many requests"),
        ([status(500)], "500"),
        ([status(500, pattern=f"*{SHARD}*")], "500"),
        ([status(401)], "TOKEN"),
        ([status(403, headers={"X-Error-Code": "GatedRepo"})], "gated"),
        ([status(403, pattern=f"*{SHARD}*")], "gated"),
        ([status(404, headers={"X-Error-Code": "RepoNotFound"})], "there is no"),
        ([status(404, pattern=f"*{SHARD}*")], SHARD),
        ([Fault("*", "redirect", ALWAYS, to=LOGIN)], "no whole answer"),  # a page in place of the list
        ([Fault(f"*{SHARD}*", "redirect", ALWAYS, to=LOGIN)], SHARD),
    ],
)
def test_given_up_and_resumed_later(faults: list[Fault], said: str, name: str, local: LocalModel, fetch: Fetch) -> None:
    with HUBS[name](MODEL | UNWANTED) as hub:
        hub.fail(*faults)
        with pytest.raises(YiTuneError) as caught:
            fetch(hub)
        assert said in caught.value.message + caught.value.hint
        assert not local.path.exists()
        # Whatever lies under a file's own name is that file.
        part = lying(local.path.with_name(f"{local.path.name}.part"))
        assert part == {name: MODEL[name] for name in part}
        hub.faults = []
        fetch(hub)
    assert lying(local.path) == MODEL


@BOTH
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({name: None for name in MODEL if "safetensors" in name}, "no weights in safetensors"),
        ({SHARD: None}, SHARD),
        ({SHARD: b"\xff" * 9 + MODEL[SHARD][9:]}, SHARD),
        ({INDEX: b"{"}, INDEX),
        ({"config.json": None}, "no config.json"),
        ({"config.json": MODEL["config.json"].replace(b'"llama"', b'"mamba"')}, "'mamba' model"),
    ],
)
def test_no_whole_model_there(
    files: dict[str, bytes | None], said: str, name: str, local: LocalModel, fetch: Fetch
) -> None:
    served = {file: text for file, text in (MODEL | files).items() if text is not None}
    with HUBS[name](served) as hub:
        with pytest.raises(YiTuneError, match=said):
            fetch(hub)
        if said == "'mamba' model":  # refused before the weights are fetched
            assert not hub.fetched(SHARD)
    assert not local.path.exists()


@BOTH
@pytest.mark.parametrize("elsewhere", ["../../outside.safetensors", "/outside.safetensors", "a/../../tokenizer.json"])
def test_file_outside_of_the_folder_is_not_fetched(elsewhere: str, name: str, local: LocalModel, fetch: Fetch) -> None:
    with HUBS[name](MODEL | {elsewhere: b"!"}) as hub:
        fetch(hub)
        assert not hub.fetched(elsewhere)
    assert {path.name for path in local.path.iterdir()} == {*MODEL, "download.json"}
