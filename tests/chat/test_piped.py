"""Lines in a pipe, as one chat, as both models' answers, as JSON."""

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.chat.fake import FakeAssistant, assistant, user
from yi_tune.chat.conversation import Conversation, piped, piped_json
from yi_tune.chat.rendering import Screen
from yi_tune.cli import app
from yi_tune.errors import YiTuneError
from yi_tune.output import log_folder
from yi_tune.sampling import Sampling


def conversation(engine: FakeAssistant, system: str | None = None) -> Conversation:
    return Conversation(engine, Sampling(), system)


# In a pipe


def to(out: io.StringIO) -> Screen:
    return Screen(Console(file=out, width=40), Console(file=io.StringIO()))


def test_each_line_is_a_turn_of_one_chat() -> None:
    engine, out = FakeAssistant(), io.StringIO()
    piped(conversation(engine, "Be brief."), ["a\n", "\n", "  \n", " b \n", "/exit\n", "d"], to(out))
    assert out.getvalue() == "<a>\n<b>\n</exit>\n<d>\n"
    assert [len(messages) for messages in engine.asked] == [2, 4, 6, 8]
    assert engine.asked[1] == [{"role": "system", "content": "Be brief."}, user("a"), assistant("<a>"), user("b")]


def test_failing_answer_in_a_pipe_is_an_error() -> None:
    out = io.StringIO()
    with pytest.raises(YiTuneError, match="too long"):
        piped(conversation(FakeAssistant(["a"], [YiTuneError("too long")])), ["1", "2", "3"], to(out))
    assert out.getvalue().startswith("a\n")


def test_standard_input_is_utf_8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeAssistant()
    monkeypatch.setattr("yi_tune.loading.chat_config", lambda *_, **__: {})
    monkeypatch.setattr("yi_tune.loading.load", lambda _: engine)
    CliRunner(charset="gbk").invoke(app, ["chat", "--json"], "你好\n".encode() + b"a\xffb")
    assert [asked[-1]["content"] for asked in engine.asked] == ["你好", "a\ufffdb"]


def test_both_side_by_side_in_a_pipe() -> None:
    engine, out = FakeAssistant(), io.StringIO()
    piped(conversation(engine), ["a\n", "\n", "b"], to(out), both=True)
    lines = out.getvalue().splitlines()
    assert lines[1].split() == ["┃", "base", "┃", "tuned", "┃"]
    assert [line.split() for line in lines if "<" in line] == [
        ["│", "<base:", "a>", "│", "<a>", "│"],
        ["│", "<base:", "b>", "│", "<b>", "│"],
    ]
    # The chat goes on from the tuned model's answers, and both are asked the same.
    assert engine.asked[2] == engine.asked[3] == [user("a"), assistant("<a>"), user("b")]


# As JSON


def answers(engine: FakeAssistant, lines: Iterable[str], system: str | None = None, *, both: bool = False) -> list[Any]:
    """What is written, object by object."""
    out = io.StringIO()
    piped_json(conversation(engine, system), lines, out, both=both)
    assert "\\u" not in out.getvalue()  # it is for people too
    return [json.loads(line) for line in out.getvalue().split("\n")[:-1]]


def test_each_line_is_a_conversation_of_its_own() -> None:
    engine = FakeAssistant([" I am\n", "“小易” 🚀 "])
    messages = [user("a"), assistant("b"), user("c")]
    lines = ["你是谁？\n", json.dumps(messages) + "\n", "\n", " ", "plain"]
    assert answers(engine, lines) == [
        {"prompt": "你是谁？", "reply": "I am\n“小易” 🚀"},
        {"prompt": messages, "reply": "<c>"},
        {"prompt": "plain", "reply": "<plain>"},
    ]
    assert engine.asked == [[user("你是谁？")], messages, [user("plain")]]


def test_both_answers() -> None:
    engine = FakeAssistant()
    assert answers(engine, ["a", "b"], both=True) == [
        {"prompt": text, "base": f"<base: {text}>", "tuned": f"<{text}>"} for text in "ab"
    ]


def test_system_prompt_goes_before_each_but_those_with_their_own() -> None:
    engine = FakeAssistant()
    own = [{"role": "system", "content": "Mine."}, user("b")]
    answers(engine, ["a", json.dumps(own), json.dumps([user("c")])], "Ours.")
    ours = {"role": "system", "content": "Ours."}
    assert engine.asked == [[ours, user("a")], own, [ours, user("c")]]


def test_bad_lines_get_an_error_and_the_rest_an_answer() -> None:
    engine, out = FakeAssistant(["half", RuntimeError("boom")]), io.StringIO()
    lines = ["fails", '[{"role": "user"}]', "fine", "[]"]
    with pytest.raises(YiTuneError, match="3 of the lines could not be answered"):
        piped_json(conversation(engine), lines, out)
    written = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [set(answer) - {"prompt"} for answer in written] == [{"error"}, {"error"}, {"reply"}, {"error"}]
    assert [answer["prompt"] for answer in written] == ["fails", [{"role": "user"}], "fine", []]
    assert written[0]["error"] == "boom"
    assert "boom" in (log_folder() / "error.log").read_text()
    assert "content" in written[1]["error"]


@pytest.mark.parametrize("line", ["text", '"text"', "3", "null", '{"role": "user", "content": "x"}', "[not json", "{"])
def test_all_but_a_list_is_plain_text(line: str) -> None:
    engine = FakeAssistant()
    answers(engine, [line])
    assert engine.asked == [[user(line)]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('["a"]', "no role"),
        ('[{"role": 1, "content": "a"}]', "no role"),
        ('[{"role": "user", "content": null}]', "not text"),
        (json.dumps([user("a"), assistant("b")]), "has to be the user's"),
        (json.dumps([user("a"), user("b"), user("c")]), "user, user, user"),
        (json.dumps([{"role": "system", "content": "s"}]), "system"),
        (json.dumps([user("a"), {"role": "system", "content": "s"}, user("b")]), "user, system, user"),
    ],
)
def test_lists_that_are_no_conversation(line: str, said: str) -> None:
    out = io.StringIO()
    with pytest.raises(YiTuneError):
        piped_json(conversation(FakeAssistant()), [line], out)
    assert said in json.loads(out.getvalue())["error"]
