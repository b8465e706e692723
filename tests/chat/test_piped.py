"""Lines in a pipe, as one chat, as both models' answers, as JSON."""

import io
import json
from contextlib import nullcontext
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.chat.fake import FakeAssistant, assistant, new_session, user
from yi_tune.chat.piped import piped, piped_json
from yi_tune.cli import app
from yi_tune.errors import YiTuneError
from yi_tune.output import log_folder


def test_each_line_is_a_turn_of_one_chat() -> None:
    engine, out = FakeAssistant(), io.StringIO()
    piped(new_session(engine, out, system="Be brief."), ["a\n", "\n", "  \n", " b \n", "/exit\n", "d"])
    assert out.getvalue() == "<a>\n<b>\n</exit>\n<d>\n"
    assert [len(messages) for messages in engine.asked] == [2, 4, 6, 8]
    assert engine.asked[1] == [{"role": "system", "content": "Be brief."}, user("a"), assistant("<a>"), user("b")]


def test_failing_answer_in_a_pipe_is_an_error() -> None:
    out = io.StringIO()
    with pytest.raises(YiTuneError, match="too long"):
        piped(new_session(FakeAssistant(["a"], [YiTuneError("too long")]), out), ["1", "2", "3"])
    assert out.getvalue().startswith("a\n")


def test_both_side_by_side_in_a_pipe() -> None:
    engine, out = FakeAssistant(), io.StringIO()
    piped(new_session(engine, out, both=True), ["a\n", "\n", "b"])
    lines = [line.replace("│", " ").split() for line in out.getvalue().splitlines() if "<" in line]
    assert lines == [["<base:", "a>", "<a>"], ["<base:", "b>", "<b>"]]
    # Each goes on from its own answers.
    assert engine.asked[2] == [user("a"), assistant("<a>"), user("b")]
    assert engine.asked[3] == [user("a"), assistant("<base: a>"), user("b")]


def test_standard_input_is_utf_8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeAssistant()
    monkeypatch.setattr("yi_tune.loading.chat_config", lambda *_, **__: {})
    monkeypatch.setattr("yi_tune.loading.load", lambda _: engine)
    runner, lines = CliRunner(charset="gbk"), "\ufeff你好\n".encode() + b"a\xffb\nc"
    done = runner.invoke(app, ["chat", "--json"], lines)
    assert [asked[-1]["content"] for asked in engine.asked] == ["你好", "c"]
    assert "not UTF-8" in str(done.exception) or "1 of the lines" in str(done.exception)
    done = runner.invoke(app, ["chat"], lines)
    assert str(done.exception) == "A line of the input is not UTF-8: a\\udcffb"
    assert [asked[-1]["content"] for asked in engine.asked[2:]] == ["你好"]


def answers(
    engine: FakeAssistant, *lines: str, system: str | None = None, both: bool = False, failing: int = 0
) -> list[Any]:
    """The JSON objects written for `lines`, of which so many cannot be answered."""
    out = io.StringIO()
    failed = pytest.raises(YiTuneError, match=f"{failing} of the lines could not be answered")
    with failed if failing else nullcontext():
        piped_json(new_session(engine, out, system=system, both=both), lines, out)
    assert "\\u" not in out.getvalue()  # it is for people too
    return [json.loads(line) for line in out.getvalue().split("\n")[:-1]]


def test_each_line_of_json_is_a_conversation_of_its_own() -> None:
    engine = FakeAssistant([" I am\n", "“小易” 🚀 "])
    own, turns = [{"role": "system", "content": "Mine."}, user("b")], [user("a"), assistant("b"), user("c")]
    lines = ["你是谁？\n", json.dumps(own) + "\n", "\n", " ", json.dumps(turns)]
    assert answers(engine, *lines, system="Ours.") == [
        {"prompt": "你是谁？", "reply": "I am\n“小易” 🚀"},
        {"prompt": own, "reply": "<b>"},
        {"prompt": turns, "reply": "<c>"},
    ]
    ours = {"role": "system", "content": "Ours."}
    assert engine.asked == [[ours, user("你是谁？")], own, [ours, *turns]]


def test_both_answers() -> None:
    assert answers(FakeAssistant(), "a", "b", both=True) == [
        {"prompt": text, "base": f"<base: {text}>", "tuned": f"<{text}>"} for text in "ab"
    ]


def test_bad_lines_get_an_error_and_the_rest_an_answer() -> None:
    engine = FakeAssistant(["half", RuntimeError("boom")])
    failed, refused, fine = answers(engine, "fails", '[{"role": "user"}]', "fine", failing=2)
    assert failed == {"prompt": "fails", "error": "boom"}
    assert "boom" in (log_folder() / "error.log").read_text()
    assert (refused["prompt"], refused["error"]) == ([{"role": "user"}], "A message's content is not text.")
    assert fine == {"prompt": "fine", "reply": "<fine>"}


@pytest.mark.parametrize("line", ['"text"', "3", "null", '{"role": "user", "content": "x"}', "[not json"])
def test_all_but_a_list_is_plain_text(line: str) -> None:
    engine = FakeAssistant()
    answers(engine, line)
    assert engine.asked == [[user(line)]]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (["a"], "no role"),
        ([{"role": 1, "content": "a"}], "no role"),
        ([user("a"), assistant("b")], "has to be the user's"),
        ([user("a"), user("b"), user("c")], "user, user, user"),
        ([user("a"), {"role": "system", "content": "s"}, user("b")], "user, system, user"),
        ([], "(none)"),
    ],
)
def test_lists_that_are_no_conversation(messages: list[object], said: str) -> None:
    assert said in answers(FakeAssistant(), json.dumps(messages), failing=1)[0]["error"]
