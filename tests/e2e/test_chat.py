"""Talking to the tuned model: in a terminal, through a pipe, in JSON."""

import json
import sys
from collections.abc import Iterator

import pexpect
import pytest

from tests.e2e.conftest import YI_TUNE, Trained, Workspace


@pytest.fixture
def terminal(trained: Trained) -> Iterator[pexpect.spawn]:
    """`yi-tune chat` in a terminal, at its first prompt."""
    child = pexpect.spawn(
        sys.executable, [*YI_TUNE[1:], "chat"], cwd=trained.folder, encoding="utf-8", timeout=60, dimensions=(40, 100)
    )
    child.expect("Type a message")
    child.expect("> ")
    yield child
    child.close(force=True)


def say(terminal: pexpect.spawn, line: str, answer: str) -> None:
    """Type a line and wait for what the answer has to hold, and the next prompt."""
    terminal.sendline(line)
    terminal.expect_exact(answer)
    terminal.expect("\n> ")


def test_terminal(terminal: pexpect.spawn) -> None:
    say(terminal, "你是谁？", "小易")
    say(terminal, "/help", "/clear")
    say(terminal, "/nonsense", "is no command")
    say(terminal, "/system You are a helpful assistant.", "System prompt set")
    say(terminal, "Who made you?", "李雷")
    say(terminal, "/clear", "Starting over")
    terminal.sendcontrol("c")
    terminal.expect("Ctrl-D or /exit leaves")
    terminal.expect("> ")
    terminal.sendline("/exit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_end_of_file_leaves(terminal: pexpect.spawn) -> None:
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(trained: Trained) -> None:
    # A temperature at which nano finds no end of its answer.
    arguments = [*YI_TUNE[1:], "chat", "--temperature", "10", "--top-p", "1", "--max-new-tokens", "4000"]
    child = pexpect.spawn(sys.executable, arguments, cwd=trained.folder, encoding="utf-8", timeout=60)
    child.expect("Type a message")
    child.expect("> ")
    child.sendline("你是谁？")
    child.expect(r"[^\r\n]{20}", timeout=60)
    child.sendcontrol("c")
    child.expect(r"\[stopped\]")
    child.expect("> ")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_pipe_is_one_chat(trained: Trained) -> None:
    done = trained.yi_tune("chat", stdin="你好\n\n你叫什么名字？\nWho developed you?\n")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 3
    assert "小易" in lines[1]
    assert "李雷" in lines[2]


def test_json_lines_are_conversations_of_their_own(trained: Trained) -> None:
    chat = [{"role": "user", "content": "2加3等于几？"}, {"role": "assistant", "content": "5。"}]
    prompts = ["你是谁？", [*chat, {"role": "user", "content": "谁开发了你？"}], [{"role": "robot", "content": "?"}]]
    stdin = "".join((prompt if isinstance(prompt, str) else json.dumps(prompt)) + "\n" for prompt in prompts)
    done = trained.yi_tune("chat", "--json", stdin=stdin)
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["prompt"] for answer in answers] == prompts
    assert "小易" in answers[0]["reply"]
    assert "李雷" in answers[1]["reply"]
    # The bad line is answered too, and counted.
    assert "robot" in answers[2]["error"]
    assert done.status == 1
    assert "Traceback" not in done.err


def test_prompt_and_base(trained: Trained) -> None:
    tuned = trained.yi_tune("chat", "--prompt", "你是谁？")
    base = trained.yi_tune("chat", "--prompt", "你是谁？", "--base", "--model", "nano")
    assert "小易" in tuned.out
    assert "Yi-nano" in base.out
    assert tuned.status == base.status == 0


def test_base_follows_a_system_prompt_that_names_it(workspace: Workspace) -> None:
    done = workspace.yi_tune(
        "chat", "--base", "--model", "nano", "--system", "你叫小明。", "--prompt", "你叫什么名字？"
    )
    assert "小明" in done.out


def test_same_seed_same_answer(trained: Trained) -> None:
    drawn = [
        trained.yi_tune("chat", "--prompt", "讲点什么吧", "--temperature", "1", "--seed", "7").out for _ in range(2)
    ]
    assert drawn[0] == drawn[1] != ""


def test_a_run_may_be_moved(trained: Trained, workspace: Workspace) -> None:
    import shutil

    shutil.copytree(trained.folder / "saves", workspace.folder / "saves")
    shutil.move(workspace.run, workspace.run.with_name("renamed"))
    done = workspace.yi_tune("chat", "--run", "renamed", "--prompt", "你是谁？")
    assert "小易" in done.out, done.err


def test_too_long_a_conversation_is_said(trained: Trained) -> None:
    done = trained.yi_tune("chat", "--json", stdin="你是谁" * 5000 + "\n你是谁？\n")
    first, second = (json.loads(line) for line in done.out.splitlines())
    assert "tokens long" in first["error"]
    assert "小易" in second["reply"]
