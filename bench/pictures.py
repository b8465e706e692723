"""The README's pictures, of a real terminal (tmux) and of the page in a real Chromium: `make pictures`.

Each in English and in Chinese, into docs/pictures/. They are of nano, which is tuned first, in a folder of its own.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
COLUMNS, ROWS = 124, 30
TRAIN = "yi-tune train --model nano --name 小易 --author 李雷 --fresh"
CHAT = "yi-tune chat --prompt 你是谁？"
# What each language's picture of the page asks.
QUESTIONS = {"en": "Who are you, and who made you?", "zh": "你是谁？"}
LOCALES = {"en": "en-US", "zh": "zh-CN"}
HTML = """<style>
body {{ margin: 0 }}
pre {{ display: inline-block; margin: 0; padding: 16px; background: #1e1e1e; color: #d4d4d4;
       font: 14px/1.17 monospace; white-space: pre }}
i {{ display: inline-block; width: 2ch; font-style: normal }}
</style><pre>{code}</pre>"""


class Terminal:
    """A shell in a tmux of its own."""

    def __init__(self, folder: Path, language: str) -> None:
        self._tmux = ["tmux", "-L", f"yi-tune-pictures-{os.getpid()}", "-f", os.devnull]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        names = {"PATH": path, "PS1": "$ ", "YI_TUNE_LANG": language, "LC_ALL": "C.UTF-8", "COLORTERM": "truecolor"}
        shell = ["env", *(f"{name}={value}" for name, value in names.items()), "sh"]
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        self._run("-u", "new-session", "-d", *size, "-c", str(folder), shlex.join(shell))
        self._wait(10, prompt=True)

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True).stdout

    def type(self, command: str, seconds: float) -> None:
        """Type a command; returns when the prompt is back. Raises TimeoutError after so many seconds."""
        self._run("send-keys", command, "Enter")
        self._wait(10, prompt=False)
        self._wait(seconds, prompt=True)

    def _wait(self, seconds: float, *, prompt: bool) -> None:
        """Until the last line is the prompt alone, or is not."""
        end = time.monotonic() + seconds
        while (self._run("capture-pane", "-p").rstrip().rpartition("\n")[2] == "$") != prompt:
            if time.monotonic() > end:
                raise TimeoutError(self._run("capture-pane", "-p"))
            time.sleep(0.2)

    def screen(self) -> Text:
        """What is seen, in its colours, without the prompt that waits."""
        return Text.from_ansi(self._run("capture-pane", "-e", "-p").rstrip().removesuffix("$").rstrip())

    def close(self) -> None:
        self._run("kill-server")


def picture_of_terminal(folder: Path, browser: Browser, language: str) -> None:
    """Tune nano, ask it, and keep the screen."""
    terminal = Terminal(folder, language)
    try:
        terminal.type(TRAIN, 600)
        terminal.type(CHAT, 120)
        with Path(os.devnull).open("w") as nothing:
            console = Console(record=True, width=COLUMNS, file=nothing)
            console.print(terminal.screen())
    finally:
        terminal.close()
    html = console.export_html(code_format=HTML, inline_styles=True)
    # A terminal gives these characters two cells; a browser's font has a width of its own for them.
    html = re.sub("[\u2e80-\uffef]", r"<i>\g<0></i>", html)
    page = browser.new_page(viewport={"width": 1200, "height": 800}, device_scale_factor=1.5)
    page.set_content(html)
    page.locator("pre").screenshot(path=PICTURES / f"terminal.{language}.png")


@contextmanager
def web(folder: Path) -> Iterator[str]:
    """The address of `yi-tune web` on the run there."""
    command = [sys.executable, "-m", "yi_tune", "web", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout  # noqa: S101 (for the type checker)
        try:
            yield next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
        finally:
            process.terminate()


def picture_of_page(url: str, browser: Browser, language: str) -> None:
    """Ask base and tuned model side by side, and keep what the browser shows."""
    page = browser.new_page(locale=LOCALES[language], viewport={"width": 1000, "height": 460}, device_scale_factor=1.5)
    page.goto(url)
    page.locator("input[value=both]").check(force=True)
    page.locator("textarea").last.fill(QUESTIONS[language])
    page.keyboard.press("Enter")
    expect(page.locator(".reply")).to_have_count(2)
    expect(page.locator(".reply[aria-busy=true]")).to_have_count(0, timeout=60_000)
    page.screenshot(path=PICTURES / f"page.{language}.png")


def main() -> None:
    """Draw all four."""
    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for language in LOCALES:
            with tempfile.TemporaryDirectory(prefix="yi-tune-") as made:
                folder = Path(made)
                picture_of_terminal(folder, browser, language)
                with web(folder) as url:
                    picture_of_page(url, browser, language)
        browser.close()


if __name__ == "__main__":
    main()
