"""Downloads where the environment names proxies: they are used, or named as what stands in the way."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hubs import ALWAYS, HUBS, Fault, HuggingFace
from tests.hubs.models import nano_tokenizer, sharded
from tests.hubs.socks import Socks5
from yi_tune.errors import YiTuneError
from yi_tune.hubs import to_push
from yi_tune.hubs.download import download
from yi_tune.models import find_model
from yi_tune.output import err

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=64)
BOTH = pytest.mark.parametrize("name", HUBS)
Point = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch, point: Point) -> Iterator[None]:
    """Hugging Face's client reads them once a process."""
    from huggingface_hub import close_session

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        for variable in (name, name.lower()):
            # Set first, so that what is changed in them is taken back.
            monkeypatch.setenv(variable, "")
            monkeypatch.delenv(variable)
    close_session()
    yield
    close_session()


def fetch(tmp_path: Path, source: str = "auto") -> None:
    local = find_model("yi-1.5-6b-chat", tmp_path)
    download(local, source, err)
    assert {file: (local.path / file).read_bytes() for file in MODEL} == MODEL


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("socksio", "socks"))), reason="socksio and PySocks are not installed"
)
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
@BOTH
def test_socks(name: str, scheme: str, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Socks5() as proxy, HUBS[name](MODEL) as hub:
        point(**{name: hub.address})
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{proxy.address}/")
        monkeypatch.setenv("NO_PROXY", "[::1],example.com")
        fetch(tmp_path, name)
        assert len(proxy.carried) >= 2


@BOTH
def test_address_in_brackets_goes_without_a_proxy(
    name: str, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "127.0.0.1:9")
    with HUBS[name](MODEL) as hub:
        point(**{name: hub.address})
        monkeypatch.setenv("no_proxy", "[::1],[fe80::1], 127.0.0.1,localhost")
        fetch(tmp_path, name)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ALL_PROXY", "socks4://me:secret@127.0.0.1:9", "socks4"),
        ("https_proxy", "http://127.0.0.1:port", "http://HOST:PORT"),
        ("HTTP_PROXY", "quic://127.0.0.1:9", "quic"),
        ("NO_PROXY", "localhost,[::1", "commas"),
    ],
)
@BOTH
def test_what_cannot_be_used_is_named(
    name: str, variable: str, value: str, said: str, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with HUBS[name](MODEL) as hub:
        point(**{name: hub.address})
        with pytest.raises(YiTuneError) as caught:
            fetch(tmp_path, name)
        assert not hub.log
    assert caught.value.message.startswith(variable)
    assert said in caught.value.message + caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("login", [False, True])
@BOTH
def test_proxy_that_is_down_or_wants_a_login(
    name: str, login: bool, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HUBS[name](MODEL) as hub, HuggingFace({}) as proxy:
        point(**{name: hub.address})
        proxy.fail(Fault("*", "status", ALWAYS, status=407))
        address = proxy.address if login else "http://127.0.0.1:9"
        monkeypatch.setenv("http_proxy", address.replace("http://", "http://me:secret@"))
        with pytest.raises(YiTuneError, match="by way of the proxy that http_proxy names") as caught:
            fetch(tmp_path, name)
        assert not hub.log
    assert "unset http_proxy" in caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("name", "address"),
    [("huggingface", "hf-mirror.example"), ("huggingface", ""), *((name, "htps://mirror.example") for name in HUBS)],
)
def test_hubs_address_without_a_scheme(name: str, address: str, point: Point, tmp_path: Path) -> None:
    """ModelScope's client itself puts https:// before what has none."""
    with HuggingFace(MODEL) as other:
        point(**{"huggingface": other.address, name: address})
        with pytest.raises(YiTuneError, match="names no address") as caught:
            fetch(tmp_path)
        assert not other.log
    variable = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}[name]
    assert caught.value.message.startswith(variable)
    assert f"{variable}=https://" in caught.value.hint


def test_no_way_to_push(point: Point, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_some")
    point(huggingface="hf-mirror.example")
    with pytest.raises(YiTuneError, match="HF_ENDPOINT"):
        to_push("huggingface", "lilei/xiaoyi")
