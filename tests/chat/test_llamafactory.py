"""`yi-tune chat --engine llamafactory`: what is handed over, and what is refused. The chat is a fake here."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from yi_tune.cli import app
from yi_tune.errors import YiTuneError


@pytest.mark.parametrize("end", [None, EOFError(), RuntimeError("no GPU")])
def test_chat_yaml_is_handed_over_with_the_paths_of_today(
    monkeypatch: pytest.MonkeyPatch, end: BaseException | None
) -> None:
    from yi_tune.engine.assistant import llamafactory_chat

    seen: list[str] = []

    def run_chat() -> None:
        seen.extend(sys.argv)
        if end:
            raise end

    fake: Any = ModuleType("llamafactory.chat.chat_model")
    fake.run_chat = run_chat
    monkeypatch.setitem(sys.modules, "llamafactory.chat.chat_model", fake)
    monkeypatch.setattr(sys, "argv", ["yi-tune"])
    failed = pytest.raises(YiTuneError, match="LLaMA-Factory's chat failed: no GPU")
    with failed if isinstance(end, RuntimeError) else nullcontext():
        llamafactory_chat(Path("chat.yaml"), {"model_name_or_path": "/now: here"})
    assert seen == ["llamafactory-cli", "chat.yaml", 'model_name_or_path="/now: here"']


def test_what_it_does_not_take_is_refused() -> None:
    arguments = ["chat", "--engine", "llamafactory", "--run", "mine"]
    done = CliRunner().invoke(app, [*arguments, "--compare", "--json", "--temperature", "0.0"])
    assert done.exit_code == 2
    assert "takes no options but --run, --model and --workspace" in " ".join(done.output.split())
    taken = CliRunner().invoke(app, arguments)
    assert isinstance(taken.exception, YiTuneError)
    assert "There is no run called 'mine'" in str(taken.exception)
