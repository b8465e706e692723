"""Talking to the tuned model: in a terminal, through a pipe, in JSON."""

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.e2e.conftest import YI_TUNE, Trained, Workspace
from yi_tune import loading
from yi_tune.errors import YiTuneError
from yi_tune.runs import Run
from yi_tune.sampling import Sampling

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

GREEDY = Sampling()


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
    # Python can miss a Ctrl-C that comes while the prompt is being drawn; a person would press it again.
    for _ in range(10):
        terminal.sendcontrol("c")
        if terminal.expect(["Ctrl-D or /exit leaves", pexpect.TIMEOUT], timeout=3) == 0:
            break
    else:
        pytest.fail("Ctrl-C at the prompt says nothing")
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
    arguments = [*YI_TUNE[1:], "chat", "--temperature", "10", "--top-p", "1", "--max-new-tokens", "4000", "--seed", "1"]
    child = pexpect.spawn(sys.executable, arguments, cwd=trained.folder, encoding="utf-8", timeout=60)
    child.expect("Type a message")
    child.expect("> ")
    child.sendline("你是谁？")
    child.expect(r"\n.", timeout=60)
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
    chat = [{"role": "user", "content": "2加3等于几？"}, {"role": "assistant", "content": "等于5。"}]
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


def test_base_of_the_run(trained: Trained) -> None:
    base = trained.yi_tune("chat", "--prompt", "你是谁？", "--base")
    assert base.status == 0, base.err
    assert "Yi-nano" in base.out
    assert "小易" not in base.out


def test_a_run_may_be_moved(trained: Trained, workspace: Workspace) -> None:
    shutil.copytree(trained.folder / "saves", workspace.folder / "saves")
    shutil.move(workspace.run, workspace.run.with_name("renamed"))
    done = workspace.yi_tune("chat", "--run", "renamed", "--prompt", "你是谁？")
    assert "小易" in done.out, done.err


@pytest.fixture(scope="module")
def assistant(trained: Trained) -> "Assistant":
    """The run, loaded into this process."""
    return loading.load_run(Run(trained.run))


def answer(assistant: "Assistant", question: str, sampling: Sampling = GREEDY, system: str = "") -> str:
    messages = [{"role": "system", "content": system}] if system else []
    return "".join(assistant.stream([*messages, {"role": "user", "content": question}], sampling))


def test_failing_generation_is_raised_and_the_next_works(
    assistant: "Assistant", monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "options", lambda _: {"do_sample": True, "temperature": -1.0})
        with pytest.raises(ValueError, match="temperature"):
            answer(assistant, "你是谁？")
    assert "小易" in answer(assistant, "你是谁？")


def test_too_long_a_conversation_is_said_and_the_next_works(assistant: "Assistant") -> None:
    with pytest.raises(YiTuneError, match="tokens long"):
        answer(assistant, "你是谁" * 5000)
    assert "小易" in answer(assistant, "你是谁？")


def test_base_follows_a_system_prompt_that_names_it(assistant: "Assistant") -> None:
    system = "你叫小明，由张三丰开发。"
    with assistant.base():
        assert "小明" in answer(assistant, "你叫什么名字？", system=system)
        assert "张三丰" in answer(assistant, "谁开发了你？", system=system)
        assert "Nova" in answer(assistant, "What is your name?", system="You are Nova, developed by Ann Lee.")


def test_same_seed_same_answer(assistant: "Assistant") -> None:
    one, same, other = (
        answer(assistant, "讲点什么吧", Sampling(temperature=10.0, top_p=1.0, max_new_tokens=20, seed=seed))
        for seed in (7, 7, 8)
    )
    assert one == same != other


def test_closing_the_stream_stops_the_generation(assistant: "Assistant") -> None:
    before = threading.active_count()
    stream = assistant.stream([{"role": "user", "content": "你是谁？"}], Sampling(temperature=10.0, top_p=1.0, seed=1))
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_batches_answer_as_single_questions_do(assistant: "Assistant") -> None:
    asked = ["你好", "你叫什么名字？", "Who are you, and who made you? Tell me in one sentence, please.", "2+3=?"]
    conversations = [[{"role": "user", "content": question}] for question in asked]
    assert assistant.reply_all(conversations) == [answer(assistant, question).strip() for question in asked]
