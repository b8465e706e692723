"""What a person sees of replies: Markdown that is drawn as it streams, two answers side by side, or plain text."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

from markdown_it import MarkdownIt
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.table import Column, Table
from rich.text import Text

from yi_tune.chat.conversation import Pieces
from yi_tune.output import print_table

# Who answers, and how to ask.
Answers = Mapping[str, Callable[[], Pieces]]

# At most this share of the time goes into drawing, and no more than 20 times a second: the model needs the cores.
_DRAWING_SHARE = 0.1
_SHORTEST_PAUSE = 0.05
# Control characters of a reply could move the cursor or rename the window.
_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def can_draw(console: Console) -> bool:
    """Whether it is a terminal on which the cursor can be moved."""
    return console.is_terminal and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


@dataclass(frozen=True)
class Screen:
    """Replies go to `answers`, all else to `notes`."""

    answers: Console
    notes: Console

    def note(self, text: str, style: str = "dim") -> None:
        """Say something that is no reply."""
        self.notes.print(text, style=style)

    def note_table(self, rows: Mapping[str, str]) -> None:
        """Names, and what there is to say about each."""
        print_table(self.notes, rows.items())

    def reply(self, pieces: Pieces) -> None:
        """Show a reply as it comes. What breaks it off, Ctrl-C too, is raised once what came is shown."""
        if can_draw(self.answers):
            self._show({"": lambda: pieces}, lambda texts: markdown(texts[""]))
            return
        out, written = self.answers.file, False
        try:
            with closing(pieces):
                for piece in pieces:
                    out.write(piece.translate(_CONTROL) if self.answers.is_terminal else piece)
                    out.flush()
                    written = True
            written = True  # in a pipe an answer without a word has its line too
        finally:
            if written:
                out.write("\n")
                out.flush()

    def side_by_side(self, answers: Answers) -> None:
        """Show what each of `answers` says, asked in their order, in columns under their names; raises as `reply`."""
        text = markdown if can_draw(self.answers) else Text
        self._show(answers, lambda texts: columns(texts, text), last_lines=True)

    def _show(
        self, answers: Answers, render: Callable[[dict[str, str]], RenderableType], *, last_lines: bool = False
    ) -> None:
        texts = dict.fromkeys(sorted(answers), "")
        region = Region(self.answers) if can_draw(self.answers) else None
        try:
            for name, answer in answers.items():
                with _keys_wait(), closing(answer()) as pieces:
                    for piece in pieces:
                        texts[name] += piece
                        if region and region.due:
                            region.draw(render(texts), last_lines=last_lines)
        finally:
            if any(texts.values()):
                (region.draw if region else self.answers.print)(render(texts))


def markdown(text: str) -> Markdown:
    """A reply as Markdown. Its line breaks stay line breaks, its HTML is text, its links show where they lead."""
    rendered = Markdown("", hyperlinks=False)
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    rendered.parsed = parser.parse(text.translate(_CONTROL))
    for block in rendered.parsed:
        for token in block.children or []:
            if token.type == "softbreak":
                token.type = "hardbreak"
    return rendered


def columns(texts: Mapping[str, str], render: Callable[[str], RenderableType]) -> Table:
    """Texts side by side under their names."""
    table = Table(*(Column(name, ratio=1, overflow="fold") for name in texts), expand=True)
    table.add_row(*(render(text.strip()) for text in texts.values()))
    return table


@dataclass
class Region:
    """The last lines of a terminal, drawn over as they change.

    rich's Live shows the beginning of what is higher than the screen, where a reply is read at its end, and draws
    all lines anew each time. Here only lines that differ are, and those that have scrolled away stay as they are.
    """

    console: Console
    shown: list[str] = field(default_factory=list)
    pause_until: float = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to draw again."""
        return time.monotonic() >= self.pause_until

    def draw(self, renderable: RenderableType, *, last_lines: bool = False) -> None:
        """Draw in the place of what was drawn before; with `last_lines` no more than the screen holds."""
        began = time.monotonic()
        # A column is left free: where it is filled, terminals differ on where the cursor then stands.
        with self.console.capture() as capture:
            self.console.print(renderable, width=max(self.console.width - 1, 1))
        lines = capture.get().rstrip("\n").split("\n")
        reach = max(self.console.height - 1, 1)
        if last_lines:
            lines = lines[-reach:]
        pairs = zip(self.shown, lines, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        same = max(same, len(self.shown) - reach)
        up = len(self.shown) - same
        # Line by line: tmux keeps a copy of what is erased as a whole screen. What is left below goes at the end.
        new = "".join(f"{line}\x1b[K\n" for line in lines[same:])
        self.console.file.write((f"\x1b[{up}A" if up > 0 else "") + "\r" + new + "\x1b[J")
        self.console.file.flush()
        self.shown = lines
        drawn = time.monotonic()
        self.pause_until = drawn + max((drawn - began) / _DRAWING_SHARE, _SHORTEST_PAUSE)


@contextmanager
def _keys_wait() -> Iterator[None]:
    """Keys typed while a reply is drawn are not shown in the midst of it; the next prompt gets them."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
