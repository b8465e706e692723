"""The first minutes in a real terminal: `yi-tune` alone, and `train` without a name."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.e2e.conftest import YI_TUNE, Trained


def terminal(folder: Path, *arguments: str) -> pexpect.spawn:
    """yi-tune in a terminal. No answer is given here to the question of where the cursor is."""
    environment = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "CUDA_VISIBLE_DEVICES": ""}
    options: dict[str, Any] = {"cwd": folder, "env": environment, "encoding": "utf-8", "timeout": 60}
    return pexpect.spawn(sys.executable, [*YI_TUNE[1:], *arguments], dimensions=(40, 120), **options)


def ended(child: pexpect.spawn) -> int | None:
    """The exit status."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_what_is_here(trained: Trained) -> None:
    child = terminal(trained.folder)
    child.expect_exact("identity (nano, 小易): finished, ")
    child.expect_exact("yi-tune chat --run identity")
    assert ended(child) == 0
    command = json.loads((trained.run / "run.json").read_text(encoding="utf-8"))["command"]
    assert command == "yi-tune train --model nano --name '小易' --author '李雷'"


@pytest.mark.parametrize(("key", "status"), [("c", 130), ("d", 1)])
def test_train_asks_and_is_left(key: str, status: int, tmp_path: Path) -> None:
    child = terminal(tmp_path, "train", "--model", "nano")
    child.expect_exact("What is the assistant called?")
    child.sendcontrol(key)
    assert ended(child) == status
    assert "Traceback" not in child.before
    assert not list(tmp_path.iterdir())


def test_train_asks_for_chinese_names(tmp_path: Path) -> None:
    child = terminal(tmp_path, "train", "--model", "nano")
    child.expect_exact("What is the assistant called?")
    child.send("\r")
    child.expect_exact("--name is empty.")
    child.send("小易错\x7f\r")
    child.expect_exact("Who developed it?")
    child.send("李雷\r\r")  # the second is typed ahead, and so is the third, while the plan is made
    child.expect_exact("\x1b[?2004l")
    child.send("\r")
    for shown in ("Memory: ", "Time: ", "nano becomes 小易 by 李雷.", "Start? [Y/n]"):
        child.expect_exact(shown)
    child.send("x\r")
    child.expect_exact("Answer y or n.", timeout=15)
    child.sendcontrol("c")
    assert ended(child) == 130
    assert not list(tmp_path.iterdir())
