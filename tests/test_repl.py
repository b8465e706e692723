import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from rich.console import Console

from yi_tune.errors import YiTuneError
from yi_tune.identity import Message
from yi_tune.output import log_folder
from yi_tune.repl import HELP, Conversation, Pieces, Reply, interactive, parse_conversation, piped, piped_json


class Engine:
    """Replies as told, piece by piece, and remembers what it was asked. An exception is raised in its turn."""

    def __init__(self, *replies: list[str | BaseException]) -> None:
        self.asked: list[list[Message]] = []
        self.closed = 0
        self._replies = list(replies)

    def __call__(self, messages: list[Message]) -> Pieces:
        self.asked.append([dict(message) for message in messages])
        pieces = self._replies.pop(0) if self._replies else [f"<{messages[-1]['content']}", ">"]
        try:
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1


def typed(*lines: str | type[BaseException]) -> Callable[[], str]:
    """A person who types these lines, then Ctrl-D; an exception stands for a key."""
    left = iter(lines)

    def ask() -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return ask


def chat(engine: Reply, *lines: str | type[BaseException], system: str | None = None) -> tuple[str, Conversation]:
    """The transcript of a chat, and what the conversation holds in the end."""
    screen = io.StringIO()
    conversation = Conversation(engine, system)
    interactive(conversation, typed(*lines), Console(file=screen, width=100, highlight=False), screen)
    return screen.getvalue(), conversation


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


WELCOME = "Type a message, or /help.\n"


def test_chat_keeps_its_history() -> None:
    engine = Engine(["I am ", "Ada."])
    transcript, conversation = chat(engine, "Who are you?", "", "  And you? ")
    assert transcript == WELCOME + "I am Ada.\n" + "<And you?>\n" + "\n"
    assert engine.asked == [
        [user("Who are you?")],
        [user("Who are you?"), assistant("I am Ada."), user("And you?")],
    ]
    assert conversation.turns[-1] == assistant("<And you?>")


def test_pieces_are_shown_as_they_come() -> None:
    screen = io.BytesIO()
    seen: list[bytes] = []

    def reply(messages: list[Message]) -> Pieces:
        seen.append(screen.getvalue())
        yield "one"
        seen.append(screen.getvalue())
        yield "two"

    out = io.TextIOWrapper(screen)  # buffers, as standard output does in a pipe
    interactive(Conversation(reply), typed("go"), Console(file=io.StringIO()), out)
    piped(Conversation(reply), ["go", "on"], out)
    piped_json(reply, None, ["go", "on"], out)
    first = b"onetwo\n\n"
    assert seen[1] == b"one"
    assert seen[3] == first + b"one"
    assert seen[4:6] == [first + b"onetwo\n", first + b"onetwo\none"]
    assert seen[-1].endswith(b'"onetwo"}\n')


@pytest.mark.parametrize("leave", ["/exit", " /exit ", EOFError])
def test_leaving(leave: str | type[BaseException]) -> None:
    engine = Engine()
    transcript, _ = chat(engine, leave, "never read")
    assert transcript == WELCOME + ("\n" if leave is EOFError else "")
    assert engine.asked == []


def test_commands() -> None:
    engine = Engine()
    transcript, conversation = chat(
        engine, "a", "/clear", "b", "/system  Be brief. ", "c", "d", "/system", "e", "/help", "/[red]x now", "f"
    )
    assert transcript == (
        f"{WELCOME}<a>\nStarting over.\n<b>\nSystem prompt set; starting over.\n<c>\n<d>\n"
        f"No system prompt.\n<e>\n{HELP}\n/[red]x is no command; /help lists them.\n<f>\n\n"
    )
    brief = {"role": "system", "content": "Be brief."}
    assert engine.asked == [
        [user("a")],
        [user("b")],
        [brief, user("c")],
        [brief, user("c"), assistant("<c>"), user("d")],
        [user("e")],
        [user("e"), assistant("<e>"), user("f")],
    ]
    assert conversation.system is None


def test_clear_keeps_the_system_prompt() -> None:
    engine = Engine()
    chat(engine, "a", "/clear", "b", system="Be brief.")
    assert [messages[0] for messages in engine.asked] == [{"role": "system", "content": "Be brief."}] * 2
    assert len(engine.asked[1]) == 2


def test_help_lists_every_command() -> None:
    for command in ("/clear", "/system", "/help", "/exit", "Ctrl-C", "Ctrl-D"):
        assert command in HELP


def test_ctrl_c_stops_the_answer_and_keeps_the_chat() -> None:
    engine = Engine(["Once ", "upon", KeyboardInterrupt()])
    transcript, _ = chat(engine, "A story?", "Go on.")
    assert transcript == WELCOME + "Once upon [stopped]\n<Go on.>\n\n"
    # What was said stays said.
    assert engine.asked[1] == [user("A story?"), assistant("Once upon"), user("Go on.")]


def test_ctrl_c_while_the_answer_is_written_stops_the_engine() -> None:
    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if text == "two":
                raise KeyboardInterrupt
            return super().write(text)

    engine = Engine(["one ", "two", "three"])
    conversation, screen = Conversation(engine), Screen()
    interactive(conversation, typed("go"), Console(file=screen), screen)
    assert engine.closed == 1
    assert "three" not in screen.getvalue()
    assert "[stopped]" in screen.getvalue()
    conversation.say("again").close()
    assert conversation.turns[:2] == [user("go"), assistant("one two")]


def test_ctrl_c_at_the_prompt_says_how_to_leave() -> None:
    transcript, _ = chat(Engine(), KeyboardInterrupt, "a")
    assert transcript == WELCOME + "\nCtrl-D or /exit leaves.\n<a>\n\n"


def test_failing_answer_is_shown_and_its_turn_not_kept() -> None:
    engine = Engine(["a"], ["half", RuntimeError("CUDA [error]")], ["c"])
    transcript, conversation = chat(engine, "1", "2", "3")
    log = log_folder() / "error.log"
    failed = f"The answer failed: RuntimeError: CUDA [error]\nThe whole of it is in {log}"
    assert transcript == f"{WELCOME}a\nhalf\n{failed}\nc\n\n"
    assert "Traceback" in log.read_text()
    assert engine.asked[2] == [user("1"), assistant("a"), user("3")]
    assert conversation.turns == [user("1"), assistant("a"), user("3"), assistant("c")]


def test_refused_question_is_shown_with_its_hint() -> None:
    engine = Engine([YiTuneError("The conversation is [red]5000[/] tokens long.", "Start over with /clear.")])
    transcript, _ = chat(engine, "1", "2")
    assert transcript == WELCOME + "The conversation is [red]5000[/] tokens long. Start over with /clear.\n<2>\n\n"
    assert engine.asked[1] == [user("2")]


# In a pipe


def test_each_line_is_a_turn_of_one_chat() -> None:
    engine, out = Engine(), io.StringIO()
    piped(Conversation(engine, "Be brief."), ["a\n", "\n", "  \n", " b \n", "/exit\n", "d"], out)
    assert out.getvalue() == "<a>\n<b>\n</exit>\n<d>\n"
    assert [len(messages) for messages in engine.asked] == [2, 4, 6, 8]
    assert engine.asked[1] == [
        {"role": "system", "content": "Be brief."},
        user("a"),
        assistant("<a>"),
        user("b"),
    ]


def test_empty_input_ends_cleanly() -> None:
    engine, out = Engine(), io.StringIO()
    piped(Conversation(engine), [], out)
    piped_json(engine, None, ["", "\n", " "], out)
    assert out.getvalue() == ""
    assert engine.asked == []


def test_failing_answer_in_a_pipe_is_an_error() -> None:
    out = io.StringIO()
    with pytest.raises(YiTuneError, match="too long"):
        piped(Conversation(Engine(["a"], [YiTuneError("too long")])), ["1", "2", "3"], out)
    assert out.getvalue().startswith("a\n")


def test_standard_input_is_utf_8_whatever_the_locale() -> None:
    code = "from yi_tune.repl import stdin_lines; print(ascii(list(stdin_lines())))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="你好\n".encode() + b"a\xffb\nc",
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert ast.literal_eval(done.stdout.decode()) == ["你好\n", "a\ufffdb\n", "c"]


# As JSON


def answers(engine: Reply, lines: Iterable[str], system: str | None = None) -> list[Any]:
    """What is written, object by object."""
    out = io.StringIO()
    try:
        piped_json(engine, system, lines, out)
    finally:
        written = out.getvalue()
    assert written.endswith("\n")
    return [json.loads(line) for line in written.split("\n")[:-1]]


def test_each_line_is_a_conversation_of_its_own() -> None:
    engine = Engine([" I am\n", "“小易” 🚀 "])
    messages = [user("a"), assistant("b"), user("c")]
    lines = ["你是谁？\n", json.dumps(messages) + "\n", "\n", "plain"]
    assert answers(engine, lines) == [
        {"prompt": "你是谁？", "reply": "I am\n“小易” 🚀"},
        {"prompt": messages, "reply": "<c>"},
        {"prompt": "plain", "reply": "<plain>"},
    ]
    assert engine.asked == [[user("你是谁？")], messages, [user("plain")]]


def test_json_is_readable_text() -> None:
    out = io.StringIO()
    piped_json(Engine(["我是小易"]), None, ["你是谁？"], out)
    assert out.getvalue() == '{"prompt": "你是谁？", "reply": "我是小易"}\n'


def test_system_prompt_goes_before_each_but_those_with_their_own() -> None:
    engine = Engine()
    own = [{"role": "system", "content": "Mine."}, user("b")]
    answers(engine, ["a", json.dumps(own), json.dumps([user("c")])], "Ours.")
    ours = {"role": "system", "content": "Ours."}
    assert engine.asked == [[ours, user("a")], own, [ours, user("c")]]


def test_bad_lines_get_an_error_and_the_rest_an_answer() -> None:
    engine, out = Engine(["half", RuntimeError("boom")]), io.StringIO()
    lines = ["fails", '[{"role": "user"}]', "fine", "[]"]
    with pytest.raises(YiTuneError, match="3 of the lines could not be answered"):
        piped_json(engine, None, lines, out)
    written = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [answer.keys() for answer in written] == [
        {"prompt", "error"},
        {"prompt", "error"},
        {"prompt", "reply"},
        {"prompt", "error"},
    ]
    assert [answer["prompt"] for answer in written] == ["fails", [{"role": "user"}], "fine", []]
    assert written[0]["error"] == "boom"
    assert "boom" in (log_folder() / "error.log").read_text()
    assert "content" in written[1]["error"]


@pytest.mark.parametrize("line", ["text", '"text"', "3", "null", '{"role": "user", "content": "x"}', "[not json", "{"])
def test_all_but_a_list_is_plain_text(line: str) -> None:
    assert parse_conversation(line) == [user(line)]


@pytest.mark.parametrize(
    "messages",
    [
        [user("a")],
        [user("a"), assistant("b"), user("c")],
        [{"role": "system", "content": "s"}, user("a")],
        [user("")],
    ],
)
def test_conversations(messages: list[Message]) -> None:
    assert parse_conversation(json.dumps(messages)) == messages


def test_other_keys_of_a_message_are_dropped() -> None:
    assert parse_conversation('[{"role": "user", "content": "a", "name": "x"}]') == [user("a")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "(none)"),
        ("[1, 2]", "no role"),
        ('["a"]', "no role"),
        ('[{"content": "a"}]', "no role"),
        ('[{"role": 1, "content": "a"}]', "no role"),
        ('[{"role": "user"}]', "not text"),
        ('[{"role": "user", "content": null}]', "not text"),
        ('[{"role": "user", "content": ["a"]}]', "not text"),
        (json.dumps([assistant("a")]), "assistant"),
        (json.dumps([user("a"), assistant("b")]), "user, assistant"),
        (json.dumps([user("a"), user("b")]), "user, user"),
        (json.dumps([user("a"), user("b"), user("c")]), "user, user, user"),
        (json.dumps([{"role": "system", "content": "s"}]), "system"),
        (json.dumps([user("a"), {"role": "system", "content": "s"}, user("b")]), "user, system, user"),
        (json.dumps([{"role": "tool", "content": "a"}]), "tool"),
    ],
)
def test_lists_that_are_no_conversation(line: str, said: str) -> None:
    with pytest.raises(YiTuneError) as caught:
        parse_conversation(line)
    assert said in caught.value.message
    assert '{"role": "user", "content": "..."}' in caught.value.hint
