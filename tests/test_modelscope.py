"""Where ModelScope's cache is looked for; tests/e2e/test_download*.py have the rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from yi_tune.hubs import ModelScope


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache."""
    from modelscope_hub.config import set_default_config

    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    set_default_config(None)
    yield tmp_path / "cache"
    set_default_config(None)


@pytest.mark.parametrize(
    "layout",
    [
        "models/01ai--Yi-1.5-6B-Chat/snapshots/master",  # today
        "models/01ai/Yi-1___5-6B-Chat",
        "hub/models/01ai/Yi-1___5-6B-Chat",
        "hub/01ai/Yi-1___5-6B-Chat",  # 2024 and before
    ],
)
def test_cache_of_every_age(layout: str, cache: Path) -> None:
    (cache / layout).mkdir(parents=True)
    (cache / layout / "config.json").write_text("{}")
    assert ModelScope("01ai/Yi-1.5-6B-Chat", None).cached() == [cache / layout]
    assert ModelScope("01ai/Yi-1.5-9B-Chat", None).cached() == []


def test_revision_in_the_cache(cache: Path) -> None:
    snapshots = cache / "models" / "01ai--Yi-1.5-6B-Chat" / "snapshots"
    for revision in ("master", "v1"):
        (snapshots / revision).mkdir(parents=True)
        (snapshots / revision / "config.json").write_text("{}")
    assert ModelScope("01ai/Yi-1.5-6B-Chat", "v1").cached() == [snapshots / "v1"]
    assert ModelScope("01ai/Yi-1.5-6B-Chat", "v2").cached() == []


def test_empty_cache(cache: Path) -> None:
    assert ModelScope("01ai/Yi-1.5-6B-Chat", None).cached() == []
    assert not cache.exists()
