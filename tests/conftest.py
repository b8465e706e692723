"""Every test has a home and a current folder of its own, and none of the user's settings."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hubs.machine import NOBODY

if "PYTEST_XDIST_WORKER" in os.environ or os.getloadavg()[0] > (os.cpu_count() or 1):
    # Processes with as many threads each as there are cores take these away from each other.
    os.environ["OMP_NUM_THREADS"] = "1"
# A shell has its background jobs ignore Ctrl-C, and what they start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The files that take longest begin, so that pytest-xdist's workers end together; the first waits for no `trained`.
LONGEST = (
    *("test_several", "test_train", "test_fit", "test_check", "test_make", "test_own", "test_profiles", "test_readme"),
    *("test_serve", "test_chat", "test_scripts"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, then the others that start the engine, and what is quick last."""

    def place(item: pytest.Item) -> int:
        if item.path.parent.name != "e2e":
            return len(LONGEST) + 1
        return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)

    items.sort(key=place)


def processor_seconds() -> float:
    """Of all the processes started from here that have ended. What runs beside them does not change it much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("XDG_CONFIG_HOME", "FORCE_COLOR", *(name for name in os.environ if name.startswith("YI_TUNE_"))):
            patch.delenv(name, raising=False)
        patch.setenv("YI_TUNE_LANG", "en")
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Points the hubs' clients at servers, or where none is named at nobody, with homes and caches of their own."""
    from modelscope_hub.config import set_default_config

    def point(**addresses: str) -> None:
        monkeypatch.setattr("yi_tune.hubs.HuggingFace.endpoint", addresses.get("huggingface", NOBODY))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", addresses.get("modelscope", NOBODY))
        set_default_config(None)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope_home"))
    monkeypatch.setenv("HF_ENDPOINT", "asked first")
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN"):
        monkeypatch.delenv(variable, raising=False)
    point()
    yield point
    set_default_config(None)
