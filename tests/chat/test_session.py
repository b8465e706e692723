"""A chat at a terminal, as a transcript."""

import io

import pytest

from tests.chat.fake import FakeAssistant, Typed, assistant, chat, new_session, user
from yi_tune.chat.piped import piped, piped_json
from yi_tune.chat.rendering import Pieces
from yi_tune.data.identity import Message
from yi_tune.errors import YiTuneError
from yi_tune.output import log_folder
from yi_tune.sampling import Sampling


def test_pieces_are_shown_as_they_come() -> None:
    shown, seen = io.BytesIO(), []
    out = io.TextIOWrapper(shown)  # buffers, as standard output does in a pipe

    class Watched(FakeAssistant):
        def stream(self, messages: list[Message], sampling: Sampling) -> Pieces:
            for piece in ("one", "two"):
                seen.append(shown.getvalue())
                yield piece

    session = new_session(Watched(), out)
    piped(session, ["go"])
    piped_json(session, ["go", "on"], out)
    assert seen[:3] == [b"", b"one", b"onetwo\n"]
    assert seen[-1].endswith(b'"onetwo"}\n')


@pytest.mark.parametrize("leave", ["/exit", " /exit ", EOFError])
def test_leaving(leave: Typed) -> None:
    assert chat(FakeAssistant(), KeyboardInterrupt, "", " a ", leave, "b")[0] == "Ctrl-D or /exit leaves.\n<a>\n"


def test_ctrl_c_stops_the_answer_and_keeps_the_chat() -> None:
    engine = FakeAssistant(["Once ", "upon", KeyboardInterrupt()], [KeyboardInterrupt()])
    transcript, session = chat(engine, "A story?", "Go on.", "/retry")
    assert transcript == "Once upon\n[stopped]\n\n[stopped]\n<Go on.>\n"
    # What was said stays said.
    story = [user("A story?"), assistant("Once upon"), user("Go on.")]
    assert engine.asked[1:] == [story, story]
    assert session.turns == [*story, assistant("<Go on.>")]


def test_failing_answer_is_shown_and_its_turn_not_kept() -> None:
    refused = YiTuneError("The conversation is [red]5000[/] tokens long.", "Start over with /clear.")
    engine = FakeAssistant(["a"], ["half", RuntimeError("CUDA [error]")], [refused], ["c"])
    transcript, session = chat(engine, "1", "2", "3", "4")
    log = log_folder() / "error.log"
    failed = f"That failed: RuntimeError: CUDA [error]\nThe whole of it is in {log}"
    assert transcript == f"a\nhalf\n{failed}\n\n{refused.message} {refused.hint}\nc\n"
    assert "Traceback" in log.read_text()
    assert engine.asked[2:] == [[user("1"), assistant("a"), user("3")], [user("1"), assistant("a"), user("4")]]
    assert session.turns == [user("1"), assistant("a"), user("4"), assistant("c")]


def test_oldest_turns_go_and_that_is_said_once() -> None:
    engine = FakeAssistant(context=5)
    transcript, session = chat(engine, "1", "2", "3", "4", system="Be brief.")
    said = "The model's context is full: the oldest turns of the conversation are left out now.\n"
    assert transcript == f"<1>\n<2>\n{said}<3>\n<4>\n"
    brief = {"role": "system", "content": "Be brief."}
    assert engine.asked[3] == [brief, user("3"), assistant("<3>"), user("4")]
    # They are left out of what is sent, not of what /save writes.
    assert len(session.turns) == 8
    for _ in range(3):
        session.obey("/undo")
    session.say("5")
    assert engine.asked[4] == [brief, user("1"), assistant("<1>"), user("5")]
