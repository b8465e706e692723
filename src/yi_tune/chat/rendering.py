"""What a person sees of replies: Markdown that is drawn as it streams, two answers side by side, or plain text."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from gettext import gettext as _

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

Pieces = Generator[str]
# Who answers, and how to ask.
Answers = Mapping[str, Callable[[], Pieces]]

# Between two drawings a reply goes on for so many times as long as the first one took: the model needs the cores.
_PAUSE = 10
# Control characters of a reply could move the cursor or rename the window.
_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Screen:
    """Replies go to `answers`, all else to `notes`."""

    answers: Console
    notes: Console

    def note(self, text: str, style: str = "dim") -> None:
        """Say something that is no reply."""
        self.notes.print(text, style=style)

    @property
    def _draws(self) -> bool:
        return self.answers.is_terminal and not self.answers.is_dumb_terminal

    def reply(self, pieces: Pieces) -> None:
        """Show a reply as it comes. What breaks it off, Ctrl-C too, is raised once what came is shown."""
        if self._draws:
            self._show({"": lambda: pieces}, lambda texts: markdown(texts[""]))
            return
        out = self.answers.file
        try:
            with closing(pieces):
                for piece in pieces:
                    out.write(piece.translate(_CONTROL) if self.answers.is_terminal else piece)
                    out.flush()
        finally:
            out.write("\n")
            out.flush()

    def side_by_side(self, answers: Answers) -> None:
        """Show what each of `answers` says, asked in their order, in columns under their names; raises as `reply`."""
        text = markdown if self._draws else Text

        def columns(texts: dict[str, str]) -> Table:
            table = Table(*(Column(_(name), ratio=1, overflow="fold") for name in texts), expand=True)
            table.add_row(*(text(said.strip()) for said in texts.values()))
            return table

        self._show(answers, columns)

    def _show(self, answers: Answers, render: Callable[[dict[str, str]], RenderableType]) -> None:
        texts = dict.fromkeys(sorted(answers), "")
        live = Live(console=self.answers, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        due = 0.0
        try:
            for name, answer in answers.items():
                with closing(answer()) as pieces:
                    for piece in pieces:
                        texts[name] += piece
                        if self._draws and (began := time.monotonic()) >= due:
                            live.start()
                            live.update(_End(render(texts)), refresh=True)
                            drawn = time.monotonic()
                            due = drawn + _PAUSE * (drawn - began)
        finally:
            if live.is_started:
                live.update(render(texts))
                live.stop()
            elif any(texts.values()):
                self.answers.print(render(texts))


@dataclass(frozen=True)
class _End:
    """As many of the last lines as the screen holds: a reply is read at its end, and Live shows the beginning."""

    whole: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.whole, options, pad=False)[-options.size.height :]:
            yield from line
            yield Segment.line()


def markdown(text: str) -> Markdown:
    """A reply as Markdown. Its line breaks stay line breaks, its HTML is text, its links show where they lead."""
    rendered = Markdown("", hyperlinks=False)
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    rendered.parsed = parser.parse(text.translate(_CONTROL).replace("\n", "  \n"))
    return rendered
