"""What is drawn, read back from a terminal of known size."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from yi_tune.chat.rendering import Pieces, Screen


@pytest.fixture(autouse=True)
def _term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


class Terminal:
    """As much of a terminal as is asked of one: cursor up, erase, and lines that scroll away for good."""

    def __init__(self, width: int, height: int) -> None:
        self.paper = io.StringIO()
        self.console = Console(file=self.paper, width=width, height=height, force_terminal=True, highlight=False)
        self.width, self.height = width, height

    def lines(self) -> list[str]:
        """All lines, those too that have scrolled away."""
        lines, row = [""], 0
        written = re.sub(r"\x1b\[([\d;]*m|\?25[lh])", "", self.paper.getvalue())
        for part in re.findall(r"\x1b\[\d*[A-Z]|[\r\n]|[^\x1b\r\n]+", written):
            if part == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif part == "\x1b[1A":
                row -= 1
                # What has scrolled away is out of reach.
                assert row >= max(0, len(lines) - self.height), "the cursor left the screen"
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part != "\r":
                assert "\x1b" not in part
                lines[row] += part
                assert cell_len(lines[row]) <= self.width, "a line wraps"
        return [line.rstrip() for line in lines]


def pieces(text: str, size: int = 3) -> Pieces:
    for start in range(0, len(text), size):
        yield text[start : start + size]


def screen(terminal: Terminal) -> Screen:
    return Screen(terminal.console, terminal.console)


LONG = "床前明月光，\n疑是**地上霜**。\n\n" + "".join(f"- {n} 个苹果 apples and pears 🍎\n" for n in range(30))


@pytest.mark.parametrize("pause", [0, 10])
@pytest.mark.parametrize("width", [80, 20])
@pytest.mark.parametrize("height", [24, 2])
def test_reply_longer_than_the_screen_is_there_once(
    pause: int, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yi_tune.chat.rendering._PAUSE", pause)
    terminal = Terminal(width, height)
    screen(terminal).reply(pieces(LONG))
    text = "\n".join(terminal.lines())
    assert text.startswith("床前明月光，\n疑是地上霜。\n")
    assert [text.count(f" {n} 个苹果") for n in range(30)] == [1] * 30


def test_markdown_keeps_what_was_written() -> None:
    terminal = Terminal(60, 24)
    said = "<script>x</script> <b>a</b>\n\n<div>\nblock\n</div>\n\n[here](https://example.org)\n\n1 < 2\nnext line"
    screen(terminal).reply(pieces(said))
    shown = "\n".join(terminal.lines())
    for text in ("<script>x</script> <b>a</b>", "<div>\nblock\n</div>", "https://example.org", "1 < 2\nnext line"):
        assert text in shown


def test_control_characters_do_nothing() -> None:
    terminal = Terminal(60, 24)
    screen(terminal).reply(pieces("a\x1b[2J\x1b]0;title\x07b\x9b1mc\rd\x00e\x7f"))
    assert terminal.lines() == ["a[2J]0;titleb1mcde", ""]


def test_terminal_without_cursor_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal(60, 24)
    screen(terminal).reply(pieces("**a**\x1b[2J\n"))
    assert terminal.paper.getvalue() == "**a**[2J\n\n"


def test_file_gets_the_reply_as_it_is() -> None:
    paper = io.StringIO()
    Screen(Console(file=paper), Console(file=io.StringIO())).reply(pieces("**a**\x1b[2J\r\n"))
    assert paper.getvalue() == "**a**\x1b[2J\r\n\n"


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("height", [50, 6])
def test_columns_line_up(width: int, height: int) -> None:
    terminal = Terminal(width, height)
    tuned = "我是小易，由李雷开发的AI助手。🚀 " * 3 + "\n\n" + "かな " * 20 + "한국어" * 10
    screen(terminal).side_by_side({"tuned": lambda: pieces(tuned), "base": lambda: pieces("I am Yi. " * 9)})
    *table, last = terminal.lines()
    assert last == ""
    assert {cell_len(line) for line in table} == {width}
    assert re.findall(r"\w+", table[1]) == ["base", "tuned"]
    # The line between the columns is in the same cell of each row.
    assert len({cell_len(line[: max(line.rfind(bar, 0, -1) for bar in "│┃┳╇┴")]) for line in table}) == 1
    text = "".join(line.split("│")[2] for line in table[3:-1])
    assert text.count("🚀") == 3
    assert text.replace(" ", "").count("한국어") == 10


def test_what_breaks_a_comparison_off_is_raised_after_what_came() -> None:
    def broken() -> Pieces:
        yield "half"
        raise RuntimeError("boom")

    terminal = Terminal(60, 24)
    with pytest.raises(RuntimeError, match="boom"):
        screen(terminal).side_by_side({"tuned": lambda: pieces("whole"), "base": broken})
    assert "half" in terminal.lines()[3]
    assert "whole" in terminal.lines()[3]
