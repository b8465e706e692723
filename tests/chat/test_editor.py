"""The line editor, with keys typed into it."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from yi_tune.chat import editor
from yi_tune.chat.session import COMMANDS
from yi_tune.output import log_folder

ENTER, ALT_ENTER = "\r", "\x1b\r"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


@pytest.fixture(autouse=True)
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm-256color")
    return log_folder() / "chat_history"


def ask(keys: PipeInput) -> Callable[[str], str]:
    return editor.reader(DummyOutput(), keys)


def test_several_lines_are_pasted_as_one_message(keys: PipeInput) -> None:
    keys.send_text("\x1b[200~def f():\r\n    return 1\r/clear\n你好吗\x1b[201~\x1b[D\x7f们" + ENTER)
    assert ask(keys)("> ") == "def f():\n    return 1\n/clear\n你们吗"


def test_interrupts_while_there_is_a_prompt_and_when_it_has_just_gone(keys: PipeInput) -> None:
    prompt: Any = ask(keys)
    interrupt = prompt.__self__.app.key_processor.send_sigint
    with pytest.raises(KeyboardInterrupt):
        prompt("> ", pre_run=lambda: asyncio.get_running_loop().call_soon(interrupt))

    async def late() -> None:
        interrupt()

    asyncio.run(late())


def test_ctrl_z_suspends(keys: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    suspended = []
    monkeypatch.setattr("prompt_toolkit.Application.suspend_to_background", lambda _: suspended.append(1))
    keys.send_text(f"a\x1ab{ENTER}")
    assert ask(keys)("> ") == "ab"
    assert suspended == [1]


def test_lines_that_are_wrapped_begin_with_nothing(keys: PipeInput) -> None:
    prompt: Any = ask(keys)
    continuation = prompt.__self__.prompt_continuation
    assert [continuation(5, 1, wrapped) for wrapped in (0, 1)] == ["... ", ""]


def test_history_is_kept_for_the_next_chat(keys: PipeInput, history: Path) -> None:
    keys.send_text(f"one{ENTER}two{ALT_ENTER}lines 🚀{ENTER}")
    first = ask(keys)
    first("> "), first("> ")
    assert history.stat().st_mode & 0o777 == 0o600
    assert list(FileHistory(history).load_history_strings()) == ["two\nlines 🚀", "one"]


def completions(text: str) -> list[str]:
    return [completion.text for completion in editor._Completer().get_completions(Document(text), CompleteEvent())]


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "my chat.jsonl").touch()
    assert completions("/") == list(COMMANDS)
    assert completions("/s") == ["/system", "/set", "/save", "/stats"]
    assert completions("/set t") == ["temperature", "top_p", "top_k"]
    assert completions(f"/load {tmp_path}/my c") == completions(f"/save -f {tmp_path}/my c") == ["hat.jsonl"]
    for text in ("", "hello", "hello /s", "a\n/s", "/s\n", "/system /s", "/x"):
        assert completions(text) == []
