"""Talking to the tuned model: in a terminal, through a pipe, in JSON."""

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pexpect
import pytest
from rich.console import Console

from tests.e2e.conftest import YI_TUNE, Trained, Workspace
from yi_tune import loading
from yi_tune.chat.rendering import Screen
from yi_tune.chat.session import Session
from yi_tune.data.identity import Message
from yi_tune.errors import YiTuneError
from yi_tune.runs import Run
from yi_tune.sampling import Sampling

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

GREEDY = Sampling()


@pytest.fixture
def terminal(trained: Trained) -> Iterator[pexpect.spawn]:
    """`yi-tune chat` in a terminal, at its first prompt."""
    # No answer is given here to the question of where the cursor is.
    environment = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    arguments = [*YI_TUNE[1:], "chat"]
    options: dict[str, Any] = {"cwd": trained.folder, "env": environment, "encoding": "utf-8", "timeout": 60}
    child = pexpect.spawn(sys.executable, arguments, dimensions=(40, 90), **options)
    child.expect("Type a message")
    child.expect(prompt())
    yield child
    child.close(force=True)


def prompt(text: str = ">") -> str:
    """A pattern for a prompt that waits: after it is drawn the cursor is shown."""
    return rf"{text}\x1b[^>]*\x1b\[\?25h"


def say(terminal: pexpect.spawn, line: str, *answer: str, then: str = ">") -> None:
    """Type a line and wait for what the answer has to hold, in this order, and the next prompt."""
    terminal.send(line + "\r")
    for text in answer:
        terminal.expect_exact(text)
    terminal.expect(prompt(then))


def test_terminal(terminal: pexpect.spawn, trained: Trained) -> None:
    say(terminal, "你是谁？", "我是小易")
    say(terminal, "Who made\x1b\ryou?", "李雷")  # Alt-Enter
    terminal.send("/stats\r")
    terminal.expect(r"(\d+) of them cached")
    assert int(terminal.match[1]) > 20
    terminal.expect(prompt())
    say(terminal, "/clear", "Starting over")
    # Base and tuned, without loading anything.
    say(terminal, "/base", "The base answers", then="base>")
    say(terminal, "你叫什么名字？", "我叫Yi-nano", then="base>")
    say(terminal, "/tuned", "The tuned model answers")
    say(terminal, "/compare", "base", "tuned", "我叫Yi-nano", "我叫小易")
    # Tab completes; the arrow recalls.
    terminal.send("/para")
    terminal.expect_exact("how replies are drawn")
    say(terminal, "\t", "repetition_penalty")
    terminal.send("\x1b[A")
    terminal.expect_exact("/params")
    say(terminal, "", "repetition_penalty")
    say(terminal, "/cleer", "Did you mean /clear?")
    # Rewarded for repeating itself, nano finds no end of its answer.
    say(terminal, "/clear", "Starting over")
    for setting in ("repetition_penalty 0.5", "max_new_tokens 3000"):
        say(terminal, f"/set {setting}", f"{setting.split()[0]} is")
    terminal.send("你是谁？\r")
    terminal.expect_exact("\x1b[?2004l")  # the prompt is done,
    for _ in range(3):
        terminal.expect_exact("\x1b[2K")  # and some of the answer is there
    terminal.sendcontrol("c")
    terminal.expect_exact("[stopped]")
    terminal.expect(prompt())
    say(terminal, "/save my chat.jsonl", "messages are in")
    say(terminal, "/save my chat.jsonl", "exists.")
    messages = [json.loads(line) for line in (trained.folder / "my chat.jsonl").read_text("utf-8").splitlines()]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert 0 < len(messages[1]["content"]) < 3000
    say(terminal, "/set repetition_penalty 1", "repetition_penalty is")
    say(terminal, "/clear", "Starting over")
    say(terminal, "/load my chat.jsonl", "2 messages")
    say(terminal, "/retry", "我是小易")
    say(terminal, "/undo", "Taken back: 你是谁？")
    terminal.sendcontrol("c")
    terminal.expect_exact("Ctrl-D or /exit leaves")
    terminal.expect(prompt())
    terminal.sendcontrol("d")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert "Traceback" not in (terminal.before or "")


def test_pipe_is_one_chat(trained: Trained) -> None:
    done = trained.yi_tune("chat", stdin="你好\n\n你叫什么名字？\nWho developed you?\n")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 3
    assert "小易" in lines[1]
    assert "李雷" in lines[2]


def test_both_as_json_of_a_run_that_was_moved(trained: Trained, workspace: Workspace) -> None:
    """Under their names; a line that is no conversation is answered too, and counted."""
    shutil.copytree(trained.folder / "saves", workspace.folder / "saves")
    shutil.move(workspace.run, workspace.run.with_name("renamed"))
    lines = '你叫什么名字？\n[{"role": "robot", "content": "?"}]\n'
    done = workspace.yi_tune("chat", "--run", "renamed", "--compare", "--json", stdin=lines)
    first, second = map(json.loads, done.out.splitlines())
    assert first == {"prompt": "你叫什么名字？", "base": "我叫Yi-nano。", "tuned": "我叫小易。"}
    assert "robot" in second["error"]
    assert done.status == 1
    assert "Traceback" not in done.err


def test_llamafactorys_own_chat(trained: Trained) -> None:
    """Until the input ends."""
    done = trained.yi_tune("chat", "--engine", "llamafactory", stdin="你叫什么名字？\n")
    assert done.status == 0, done.err[-2000:]
    assert "Welcome to the CLI application" in done.out
    assert "小易" in done.out
    assert "Traceback" not in done.err


def answer(assistant: "Assistant", question: str, sampling: Sampling = GREEDY, system: str = "") -> str:
    messages = [{"role": "system", "content": system}] if system else []
    return "".join(assistant.stream([*messages, {"role": "user", "content": question}], sampling))


def test_failing_generation_is_raised_and_the_next_works(
    assistant: "Assistant", monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("yi_tune.engine.replies.draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answer(assistant, "你是谁？")
    with pytest.raises(YiTuneError, match="tokens long"):
        answer(assistant, "你是谁" * 5000)
    assert "小易" in answer(assistant, "你是谁？")


def read(assistant: "Assistant") -> tuple[int, int]:
    """Tokens of the last prompt, and how many of them were cached."""
    assert assistant.last is not None
    return assistant.last.prompt_tokens, assistant.last.cached_tokens


def test_base_follows_a_system_prompt_that_names_it(assistant: "Assistant") -> None:
    with assistant.base():
        assert "小明" in answer(assistant, "你叫什么名字？", system="你叫小明，由张三丰开发。")
        assert "Nova" in answer(assistant, "What is your name?", system="You are Nova, developed by Ann Lee.")


def test_cache_changes_no_reply(assistant: "Assistant") -> None:
    """Base and tuned model in turn, each with its own history, with what was read kept and without."""
    texts = ["你好", "你叫什么名字？", "Who made you?", "2加3等于几？"]
    texts += ["What is the capital of France?", "谢谢你", "Goodbye!"]

    def talk(*, keep: bool) -> tuple[list[str], list[int]]:
        histories: dict[bool, list[Message]] = {False: [], True: []}
        replies, fresh = [], []
        assistant.cache.clear()
        for text in texts:
            for base, history in histories.items():
                if not keep:
                    assistant.cache.clear()
                history.append({"role": "user", "content": text})
                with assistant.base() if base else nullcontext():
                    replies.append("".join(assistant.stream(history, GREEDY)))
                history.append({"role": "assistant", "content": replies[-1]})
                tokens, cached = read(assistant)
                fresh.append(tokens - cached)
        return replies, fresh

    with_cache, fresh = talk(keep=True)
    without, fresh_without = talk(keep=False)
    assert with_cache == without
    assert with_cache[2] != with_cache[3]  # tuned and base
    # A turn reads what is new in it, however long the conversation is: the message, and the tokens around it.
    assert max(fresh) <= 30
    assert fresh_without[-1] > 100


def test_cache_is_cut_where_the_conversation_changed(assistant: "Assistant") -> None:
    said = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    turns = [*said, {"role": "user", "content": "What is your name?"}]
    conversations = [turns, [{"role": "system", "content": "You are Nova, developed by Ann Lee."}, *turns]]
    alone = []
    for messages in conversations:
        assistant.cache.clear()
        alone.append("".join(assistant.stream(messages, GREEDY)))
    assert ["".join(assistant.stream(messages, GREEDY)) for messages in conversations] == alone
    # The same question again: all but its last token is there.
    assert "".join(assistant.stream(conversations[1], GREEDY)) == alone[1]
    tokens, cached = read(assistant)
    assert cached == tokens - 1


def test_reply_stopped_halfway(assistant: "Assistant") -> None:
    """What was read of the conversation is kept."""
    question = {"role": "user", "content": "What can you do?"}
    stream = assistant.stream([question], GREEDY)
    said = next(stream) + next(stream)
    stream.close()
    messages = [question, {"role": "assistant", "content": said}, {"role": "user", "content": "你是谁？"}]
    reply = "".join(assistant.stream(messages, GREEDY))
    assert read(assistant)[1] > 0
    assistant.cache.clear()
    assert "".join(assistant.stream(messages, GREEDY)) == reply


def test_oldest_turns_go_when_the_context_is_full(assistant: "Assistant") -> None:
    paper = Console(file=io.StringIO())
    turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}] * 240
    session = Session(assistant, Screen(paper, paper), turns=turns)
    session.say("你是谁？")
    assert session.turns[-1]["content"]
    # There is room for a reply, and for some turns more before the next ones go.
    tokens, _ = read(assistant)
    assert 1000 < tokens <= 4096 - 256
    session.say("你是谁？")
    assert read(assistant)[1] >= tokens


def test_in_4_bits_as_where_memory_is_short(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "copied")
    run = Run(Workspace(tmp_path / "copied").run)
    run.write("chat.yaml", run.chat_yaml.read_text() + "quantization_bit: 4\n")
    assistant = loading.load_run(run)
    for question in ("你是谁？", "你叫什么名字？"):
        assert "小易" in answer(assistant, question)
    assert any(type(module).__name__ == "Linear4bit" for module in assistant.model.modules())


def test_memory_that_runs_out_makes_smaller_batches(assistant: "Assistant", monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from yi_tune.engine import replies

    questions: list[list[Message]] = [[{"role": "user", "content": f"{number}加2等于几？"}] for number in range(1, 8)]
    expected = [answer(assistant, question[0]["content"]).strip() for question in questions]
    padded, sizes = replies.left_padded, []

    def short_of_memory(rows: list[list[int]], device: torch.device) -> Any:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        return padded(rows, device)

    monkeypatch.setattr(replies, "left_padded", short_of_memory)
    assert assistant.reply_all(questions) == expected
    assert sizes == [7, 3, 4, 2, 2]
