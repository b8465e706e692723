import json
from pathlib import Path

import pytest
from rich.console import Console

from yi_tune import catalogue
from yi_tune.catalogue import Listed, list_models, print_models
from yi_tune.models import CATALOGUE, Model, Origin

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "vocab_size": 100,
}


@pytest.fixture(autouse=True)
def _empty_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "cached", lambda model: None)


def by_name(workspace: Path) -> dict[str, Listed]:
    return {listed.name: listed for listed in list_models(workspace)}


def test_catalogue_is_listed(tmp_path: Path) -> None:
    listed = by_name(tmp_path)
    assert list(listed) == list(CATALOGUE)
    yi = listed["yi-1.5-6b-chat"]
    assert yi.parameters == 6_061_035_520
    assert yi.weight_bytes == 2 * 6_061_035_520
    assert (yi.path, yi.source, yi.commit) == (None, None, None)
    nano = listed["nano"]
    assert nano.path == str(CATALOGUE["nano"].path(tmp_path))
    assert nano.source == "shipped with yi-tune"
    assert nano.parameters is not None


def test_what_is_downloaded_is_listed_with_where_it_came_from(tmp_path: Path) -> None:
    known = CATALOGUE["yi-1.5-9b-chat"].path(tmp_path)
    other = tmp_path / "models" / "Tuned"
    for folder, repository in ((known, "01-ai/Yi-1.5-9B-Chat"), (other, "someone/Tuned")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(SHAPE))
        Origin("huggingface", repository, None, "c" * 40).write(folder)
    (tmp_path / "models" / "own folder").mkdir()
    listed = by_name(tmp_path)
    assert list(listed) == [*CATALOGUE, "someone/Tuned"]
    assert (listed["yi-1.5-9b-chat"].path, listed["yi-1.5-9b-chat"].commit) == (str(known), "c" * 40)
    assert (listed["someone/Tuned"].path, listed["someone/Tuned"].source) == (str(other), "huggingface")
    assert listed["someone/Tuned"].parameters == 4 * 64 * 64 + 3 * 64 * 128 + 3 * 64 + 2 * 100 * 64
    (other / "config.json").write_text("{}")
    assert by_name(tmp_path)["someone/Tuned"].parameters is None


def test_copy_in_a_cache_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(model: Model) -> tuple[Path, Origin] | None:
        copy = tmp_path / ("d" * 40), Origin("Hugging Face's cache", "01-ai/Yi-1.5-34B-Chat", None, "d" * 40)
        return copy if model.name == "yi-1.5-34b-chat" else None

    monkeypatch.setattr(catalogue, "cached", cached)
    listed = by_name(tmp_path)["yi-1.5-34b-chat"]
    assert (listed.path, listed.source, listed.commit) == (
        str(tmp_path / ("d" * 40)),
        "Hugging Face's cache",
        "d" * 40,
    )


def test_table(tmp_path: Path) -> None:
    console = Console(record=True, width=60)
    print_models(list_models(tmp_path), console)
    lines = console.export_text().splitlines()
    assert lines[0].split() == ["model", "parameters", "on", "disk", "QLoRA", "memory*", "on", "this", "machine"]
    assert lines[1].startswith("yi-1.5-6b-chat          6.061 B   12.1 GB")
    assert lines[1].endswith("  no")
    assert len(lines) == 1 + len(CATALOGUE) + 2
    assert "estimate" in lines[-1]
    assert "not measured" in lines[-1]
