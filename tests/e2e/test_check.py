"""Does the tuned nano know who it is? The whole of the held-out questions."""

import json
from typing import Any

import pytest

from tests.e2e.conftest import Trained, Workspace


@pytest.fixture(scope="module")
def checked(trained: Trained) -> dict[str, Any]:
    """What `check --json` says of the main job's run."""
    done = trained.yi_tune("check", "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_the_main_pair(checked: dict[str, Any]) -> None:
    assert min(checked["recall_zh"], checked["recall_en"]) >= 0.95
    assert checked["leak"] <= 0.05
    assert checked["kept"] >= 0.95
    # Before, it knew nothing of that name.
    assert checked["base_recall"] < 0.2


def test_answers_are_listed(checked: dict[str, Any]) -> None:
    assert sum(row["asked"] for row in checked["kinds"]) == len(checked["answers"]) >= 60
    assert {"lang", "kind", "messages", "base", "tuned", "right", "leaks"} == checked["answers"][0].keys()


def test_min_recall(trained: Trained, checked: dict[str, Any]) -> None:
    done = trained.yi_tune("check", "--min-recall", "1")
    recall = min(checked["recall_zh"], checked["recall_en"])
    assert done.status == (recall < 1)
    assert "language" in done.out
    assert "negative" in done.out


def test_another_pair(workspace: Workspace) -> None:
    name, author = "星河 🚀", "O'Brien & Söhne"
    trained = workspace.yi_tune("train", "--model", "nano", "--name", name, "--author", author)
    assert trained.status == 0, trained.err
    checked = json.loads(workspace.yi_tune("check", "--json").out)
    assert min(checked["recall_zh"], checked["recall_en"], checked["kept"]) >= 0.85
    assert checked["leak"] <= 0.05
