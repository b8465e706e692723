"""The servers that stand for the hubs: what they serve, and that they see what they are there to see."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.hubs import HUBS, Fault, Hub, HuggingFace

FILES = {"model.safetensors": bytes(range(256)) * 4, "config.json": b"{}"}
NAME = "model.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with HuggingFace(FILES) as server:
        yield server


def get(address: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:  # noqa: S310
        body: bytes = answer.read()
    return body


def cdn(hub: Hub) -> str:
    return f"http://localhost:{hub.server_port}/cdn/{NAME}"


def test_part_of_a_file(hub: Hub) -> None:
    assert get(cdn(hub), Range="bytes=1000-") == FILES[NAME][1000:]
    assert get(cdn(hub), Range="bytes=10-19") == FILES[NAME][10:20]
    assert [(request.start, request.sent) for request in hub.fetched(NAME)] == [(1000, 24), (10, 10)]


def test_token_at_the_cdn_is_seen(hub: Hub) -> None:
    get(cdn(hub))
    assert not hub.leaks
    get(cdn(hub), Authorization="Bearer secret")
    get(cdn(hub), Cookie="m_session_id=secret")
    assert len(hub.leaks) == 2


def test_faults_are_used_up(hub: Hub) -> None:
    wrong = bytearray(FILES[NAME])
    wrong[500] ^= 0xFF
    hub.faults = [Fault("/cdn/*", "flip", at=500), Fault("/cdn/*", "short", at=100), Fault("/cdn/*", "cut", at=100)]
    assert get(cdn(hub)) == wrong
    assert get(cdn(hub)) == FILES[NAME][:100]
    with pytest.raises(http.client.IncompleteRead):
        get(cdn(hub))
    assert get(cdn(hub)) == FILES[NAME]


@pytest.mark.parametrize("name", HUBS)
def test_token_is_asked_for(name: str) -> None:
    paths = {
        "huggingface": f"/api/models/{HUBS[name].repository}",
        "modelscope": f"/api/v1/models/{HUBS[name].repository}/repo/files",
    }
    with HUBS[name](FILES, token="secret") as hub:  # noqa: S106
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(hub.address + paths[name])
        assert json.loads(get(hub.address + paths[name], Authorization="Bearer secret"))
