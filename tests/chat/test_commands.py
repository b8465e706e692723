"""The commands, each as it is typed."""

import json
from pathlib import Path

import pytest

from tests.chat.fake import FakeAssistant, assistant, chat, user
from yi_tune.chat.session import COMMANDS, KEYS, PARAMETERS
from yi_tune.data.identity import Message
from yi_tune.sampling import Sampling


def test_starting_over() -> None:
    engine = FakeAssistant()
    transcript, session = chat(engine, "a", "/clear", "/system  Be\nbrief. ", "c", "/clear", "e", "/system", "f")
    assert transcript == (
        "<a>\nStarting over.\nSystem prompt set; starting over.\n<c>\nStarting over.\n<e>\n"
        "No system prompt; starting over.\n<f>\n"
    )
    brief = {"role": "system", "content": "Be\nbrief."}
    assert engine.asked == [[user("a")], [brief, user("c")], [brief, user("e")], [user("f")]]
    assert session.system is None


def test_help_lists_every_command_and_key() -> None:
    transcript, _ = chat(FakeAssistant(), "/help")
    assert [line.split()[0] for line in transcript.splitlines() if line.startswith("/")] == list(COMMANDS)
    for word in (*PARAMETERS, KEYS, *(takes for takes, *_ in COMMANDS.values())):
        assert word in transcript


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("/retyr", "/retyr is no command; /help lists them. Did you mean /retry?\n"),
        ("/set-temperature 0.5", "/set-temperature is no command"),
        ("/Tuned", "/Tuned is no command; /help lists them. Did you mean /tuned?\n"),
        ("/save! x", "<"),  # no word: a message
        ("/usr/bin/python is what?", "<"),
    ],
)
def test_mistyped_command(typed: str, said: str) -> None:
    engine = FakeAssistant()
    assert chat(engine, typed)[0].startswith(said)
    assert bool(engine.asked) == (said == "<")


def test_retry_asks_again_and_takes_the_place() -> None:
    engine = FakeAssistant(["one"], ["two"])
    transcript, session = chat(engine, "/retry", "a", "/retry")
    assert transcript == "There is no message yet. Type one.\none\ntwo\n"
    assert engine.asked == [[user("a")]] * 2
    assert session.turns == [user("a"), assistant("two")]


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        (["b", "/retry"], [user("b"), assistant("two")]),
        (["b", "/undo"], []),
        (["/retry"], []),  # until the new answer is whole, the old one stays
    ],
)
def test_answer_that_failed(typed: list[str], left: list[Message]) -> None:
    engine = FakeAssistant(["one"], ["half", RuntimeError("boom")], ["two"])
    assert chat(engine, "a", *typed)[1].turns == [user("a"), assistant("one"), *left]


def test_undo() -> None:
    engine = FakeAssistant()
    transcript, _ = chat(engine, "a", "b", "/undo", "c", "/undo", "/undo", "/undo")
    taken = "Taken back: {}\n".format
    nothing = "There is no message yet. Type one.\n"
    assert transcript == f"<a>\n<b>\n{taken('b')}<c>\n{taken('c')}{taken('a')}{nothing}"
    assert engine.asked[2] == [user("a"), assistant("<a>"), user("c")]


def test_set_changes_the_next_reply() -> None:
    engine = FakeAssistant()
    lines = ["/set temperature 0.7", "/set top_p=0.9", "/set seed 7", "/set max_new_tokens  12 ", "a", "/set seed none"]
    transcript, session = chat(engine, *lines)
    assert transcript == ("temperature is 0.7.\ntop_p is 0.9.\nseed is 7.\nmax_new_tokens is 12.\n<a>\nseed is none.\n")
    assert engine.samplings == [Sampling(temperature=0.7, top_p=0.9, max_new_tokens=12, seed=7)]
    assert session.sampling.seed is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "Nothing cannot be set. Known: temperature, top_p, repetition_penalty, max_new_tokens, seed, top_k."),
        ("temprature 1", "temprature cannot be set. Did you mean temperature?"),
        ("temperature", "temperature takes a number, not nothing."),
        ("max_new_tokens 1.5", "max_new_tokens takes a whole number, not 1.5."),
        ("temperature nan", "Out of range: temperature nan (takes 0 (greedy) to 2). For example: temperature 0.7 and"),
        ("top_p [red]now[/]", "top_p takes a number, not [red]now[/]."),
        ("temperature none", "temperature takes a number, not none."),
    ],
)
def test_set_refuses(typed: str, said: str) -> None:
    transcript, session = chat(FakeAssistant(), f"/set {typed}")
    assert transcript.startswith(said)
    assert session.sampling == Sampling()


def test_params() -> None:
    transcript, _ = chat(FakeAssistant(), "/set seed 7", "/base", "/params", system="Be brief.")
    table = dict(line.rstrip().split(maxsplit=1) for line in transcript.splitlines()[2:])
    assert table == {key: str(value) for key, value in vars(Sampling(seed=7)).items()} | {
        "system": "Be brief.",
        "model": "base",
    }


def test_base_and_tuned_go_on_from_their_own_answers() -> None:
    engine = FakeAssistant()
    transcript, session = chat(engine, "a", "/base", "b", "/tuned", "c", "/base")
    assert transcript == (
        "<a>\nThe base is asked the earlier messages first.\nThe base answers from here on.\n"
        "<base: b>\nThe tuned model is asked the earlier messages first.\nThe tuned model answers from here on.\n"
        "<c>\nThe base is asked the earlier messages first.\nThe base answers from here on.\n"
    )
    tuned, base = ([user("a"), assistant(f"<{who}a>"), user("b")] for who in ("", "base: "))
    assert engine.asked[1:5] == [[user("a")], base, tuned, [*tuned, assistant("<b>"), user("c")]]
    assert session.turns == [*base, assistant("<base: b>"), user("c"), assistant("<base: c>")]
    assert session.other == [*tuned, assistant("<b>"), user("c"), assistant("<c>")]


@pytest.mark.parametrize("command", ["/base", "/tuned", "/compare a"])
def test_one_model_alone_does_not_switch(command: str) -> None:
    transcript, _ = chat(FakeAssistant(switches=False), command)
    assert transcript == "Only one model is loaded. yi-tune chat --run NAME --compare loads a run's two.\n"


def test_compare_asks_both_and_goes_on_with_the_one_in_use() -> None:
    engine = FakeAssistant()
    transcript, session = chat(engine, "/compare", "/compare a", "/base", "/compare", "b")
    assert transcript.startswith("There is no message yet. Type one.\n")
    rows = [line.replace("│", " ").split() for line in transcript.splitlines() if "<" in line]
    assert rows[:2] == [["<base:", "a>", "<a>"]] * 2
    assert engine.asked[:4] == [[user("a")]] * 4
    assert session.turns == [user("a"), assistant("<base: a>"), user("b"), assistant("<base: b>")]
    assert chat(FakeAssistant(), "a", "/retry", both=True)[0].count("<base: a>") == 2


def test_compare_in_mid_conversation_tells_neither_what_the_other_said() -> None:
    engine = FakeAssistant(["I am 小易."], ["你好"])
    transcript, session = chat(engine, "Who?", "Hi", "/compare And now?", "/compare", "/undo", "/compare Again?")
    assert transcript.count("The base is asked the earlier messages first.\n") == 1
    own = [user("Who?"), assistant("I am 小易."), user("Hi"), assistant("你好")]
    other = [user("Who?"), assistant("<base: Who?>"), user("Hi"), assistant("<base: Hi>")]
    assert engine.asked[2:] == [
        *([user("Who?")], other[:3]),
        *([*own, user("And now?")], [*other, user("And now?")]) * 2,
        *([*own, user("Again?")], [*other, user("Again?")]),
    ]
    assert session.turns == [*own, user("Again?"), assistant("<Again?>")]


def test_stats() -> None:
    transcript, _ = chat(FakeAssistant(), "/stats", "a", "/stats")
    assert transcript == (
        "There is no reply yet.\n<a>\n"
        "21 tokens at 10.0 tokens/s, the first after 0.50 s; 100 tokens were read, 90 of them cached\n"
    )


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "my chats" / "小易 [1].jsonl"
    path.parent.mkdir()
    engine = FakeAssistant(["嗨\n🚀"])
    transcript, _ = chat(engine, f"/save {path}", "你好", f"/save {path}", system="Be brief.")
    assert transcript == f"There is nothing to save yet.\n嗨\n🚀\n3 messages are in {path}\n"
    messages = [{"role": "system", "content": "Be brief."}, user("你好"), assistant("嗨\n🚀")]
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == messages
    assert path.stat().st_mode & 0o777 == 0o600

    engine = FakeAssistant()
    transcript, _ = chat(engine, "before", f'/load "{path}"', "again")
    assert transcript == f"<before>\nGoing on after 2 messages from {path}.\n<again>\n"
    assert engine.asked[1] == [*messages, user("again")]

    path.write_text('{"role": "user", "content": "a"}\n', encoding="utf-8")
    transcript, session = chat(FakeAssistant(), f"/load {path}", "/retry", system="Be brief.")
    assert transcript == f"Going on after 1 messages from {path}.\n<a>\n"
    assert (session.system, session.turns) == (None, [user("a"), assistant("<a>")])


def test_save_overwrites_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("mine")
    transcript, _ = chat(FakeAssistant(), "a", f"/save {path}")
    assert transcript == f"<a>\n{path} exists. /save -f {path} overwrites a file.\n"
    assert path.read_text() == "mine"
    chat(FakeAssistant(), "a", f"/save -f {path}")
    assert "<a>" in path.read_text()


def test_files_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for command in ("/save", "/load", "/save -f ", '/save ""'):
        assert "Which file?" in chat(FakeAssistant(), "a", command)[0]
    for name in ("folder", "none/chat.jsonl", "/dev/null"):
        for command in ("/save", "/save -f", "/load"):
            transcript, session = chat(FakeAssistant(), "a", f"{command} {tmp_path / name}", "b")
            first, _, last = transcript.splitlines()
            assert (first, last, len(session.turns)) == ("<a>", "<b>", 4)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "(none)"),
        (b'{"role": "user", "content": "a"}\n{', "not JSON lines"),
        (b"\xff\xfe", "in UTF-8"),
        (b"3", "no role"),
    ],
)
def test_load_that_fails_loses_nothing(content: bytes, said: str, tmp_path: Path) -> None:
    path, engine = tmp_path / "chat.jsonl", FakeAssistant()
    path.write_bytes(content)
    transcript, session = chat(engine, "a", f"/load {path}", "b", system="Be brief.")
    assert said in transcript
    assert session.system == "Be brief."
    assert len(engine.asked[1]) == 4
