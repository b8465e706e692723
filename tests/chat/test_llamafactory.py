"""`yi-tune chat --engine llamafactory`: what is handed over, and what is refused. The chat is a fake here."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from yi_tune.cli import app
from yi_tune.errors import YiTuneError


@pytest.fixture
def chat_yaml(tmp_path: Path) -> Path:
    file = tmp_path / "chat.yaml"
    file.write_text("model_name_or_path: /gone\ntemplate: yi\n")
    return file


def started(monkeypatch: pytest.MonkeyPatch, chat_yaml: Path, *ends: BaseException) -> list[str]:
    """The command line that LLaMA-Factory's chat reads; `ends` are raised in it."""
    seen: list[str] = []

    def run_chat() -> None:
        seen.extend(sys.argv)
        for end in ends:
            raise end

    fake: Any = ModuleType("llamafactory.chat.chat_model")
    fake.run_chat = run_chat
    monkeypatch.setitem(sys.modules, "llamafactory.chat.chat_model", fake)
    monkeypatch.delitem(sys.modules, "yi_tune.engine.chat", raising=False)
    monkeypatch.setattr(sys, "argv", ["yi-tune"])
    module = importlib.import_module("yi_tune.engine.chat")
    monkeypatch.delitem(sys.modules, "yi_tune.engine.chat")
    module.chat(chat_yaml, {"model_name_or_path": "/now: here", "template": "yi"})
    return seen


@pytest.mark.parametrize("ends", [[], [EOFError()]])
def test_chat_yaml_is_handed_over_with_the_paths_of_today(
    monkeypatch: pytest.MonkeyPatch, chat_yaml: Path, ends: list[BaseException]
) -> None:
    handed = started(monkeypatch, chat_yaml, *ends)
    assert handed == ["llamafactory-cli", str(chat_yaml), 'model_name_or_path="/now: here"']


def test_failure_is_said(monkeypatch: pytest.MonkeyPatch, chat_yaml: Path) -> None:
    with pytest.raises(YiTuneError, match="LLaMA-Factory's chat failed: no GPU") as said:
        started(monkeypatch, chat_yaml, RuntimeError("no GPU"))
    assert "error.log" in said.value.hint


def test_what_it_does_not_take_is_refused() -> None:
    arguments = ["chat", "--engine", "llamafactory", "--run", "mine"]
    done = CliRunner().invoke(app, [*arguments, "--compare", "--json", "--temperature", "0.0"])
    assert done.exit_code == 2
    assert "LLaMA-Factory's chat takes no --compare, --json, --temperature." in done.output
    taken = CliRunner().invoke(app, arguments)
    assert isinstance(taken.exception, YiTuneError)
    assert "There is no run called 'mine'" in str(taken.exception)
