"""The commands of both READMEs and of docs/ work, and print the lines shown, whatever the figures and the answers.

What a page shows is in its own language. A command that several pages of one show runs once.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import typer

from tests.e2e.conftest import Done, Trained, Workspace
from yi_tune.cli import app

ROOT = Path(__file__).parents[2]
TRAIN = "yi-tune train --model nano --name 小易 --author 李雷"
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def sessions(text: str) -> list[tuple[str, list[str]]]:
    """Each command of the blocks and the output shown under it; `no-test` blocks need a GPU or make."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```(?:console)?\n(\$ .*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                # make demo names its run, and quotes; the same is trained here under the default name.
                demo = " --run demo" in line
                found.append((re.sub(' --run demo( --fresh)?|"', "", line[2:]) if demo else line[2:], []))
            else:
                found[-1][1].append(line)
    return found


SESSIONS = {
    str(text.relative_to(ROOT)): shown
    for text in TEXTS
    if text.name != "help.md" and (shown := sessions(text.read_text(encoding="utf-8")))
}
assert {"README.md", "README.zh-CN.md", "docs/training.md", "docs/zh/training.md", "docs/chat.md"} <= SESSIONS.keys()


def comparable(line: str) -> str:
    """A line without what differs from machine to machine: figures, spacing, and where the files lie."""
    line = re.sub(r"/[^\n]*?/(saves|data)/", r"/.../\1/", line)
    line = re.sub(r"\b[MG]B\b", "GB", line)
    return re.sub(r"\s+", " ", re.sub(r"[\d.]+(e-\d+)?", "N", line)).strip()


@cache
def workspace_of(language: str, trained: Trained) -> Workspace:
    """Where the pages of a language work: those that are not English, in a copy."""
    if language == "en":
        return trained
    own = Workspace(Path(tempfile.mkdtemp(dir=trained.folder.parent)))
    shutil.copytree(trained.folder / "saves", own.folder / "saves")
    return own


@cache
def run(command: str, language: str, trained: Trained) -> Done:
    """What a command of the texts does: yi-tune's, perhaps with something piped into it."""
    own = workspace_of(language, trained)
    if own == trained and command == TRAIN:
        return trained.done
    if command == TRAIN:  # the last quarter again, which prints all that is printed from the start
        (own.run / "report.json").unlink()
        shutil.rmtree(max(own.run.glob("checkpoint-*")))  # there are two, of three digits each
    *before, ours = command.split(" | ")
    piped = subprocess.run(["bash", "-c", *before], capture_output=True, text=True, check=True).stdout if before else ""
    name, *arguments = shlex.split(ours)
    assert name == "yi-tune"
    return own.yi_tune("--lang", language, *arguments, stdin=piped)


@pytest.mark.parametrize("text", SESSIONS)
def test_commands_and_their_output(text: str, trained: Trained) -> None:
    language = "zh" if re.search(r"\bzh\b", text) else "en"
    for command, lines in SESSIONS[text]:
        done = run(command, language, trained)
        assert done.status == 0, f"{command}: {done.err}"
        printed = {comparable(line) for line in (done.out + done.err).splitlines()}
        # A table is as wide as the terminal, and its rows hold the model's answers, which another processor rounds to
        # other words. And it may have no bf16 of its own.
        machine = ("bf16 ", "fp16 ", "flash_attn ")
        for line in lines:
            if line.strip() not in ("", "...") and not re.match("[┏┡│├└]", line) and not line.startswith(machine):
                assert comparable(line) in printed, f"{command} did not print: {line}"


def test_the_command_line_knows_every_command_shown() -> None:
    """Also those that need a GPU: in the text, in `no-test` blocks and in the Dockerfile."""
    known = typer.main.get_command(app)
    before = r"(?:`|^\$ (?:.* )?|^# .* )"  # in a line, at a prompt, in a comment
    for text in [*TEXTS, ROOT / "Dockerfile"]:
        content = text.read_text(encoding="utf-8") if text.name != "help.md" else ""
        for line in re.findall(rf"{before}yi-tune ((?:{'|'.join(known.commands)})\b[^`|\n]*)", content, re.MULTILINE):
            name, *words = ["1" if word == "N" else word for word in shlex.split(line, comments=True)]
            command = known.commands[name]
            while words and words[0] in getattr(command, "commands", ()):
                command = command.commands[words.pop(0)]
            try:
                command.make_context(name, words or ["--"]).close()
            except typer.TyperException as error:
                pytest.fail(f"{text.name}: yi-tune {line}: {error}")


def test_both_readmes_show_the_same() -> None:
    """All that is typed in the English one; the Chinese one has more, such as mirrors."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    for block in re.findall(r"^```.*?^```", english, re.MULTILINE | re.DOTALL):
        for typed in re.findall(r"^\$ .*", block, re.MULTILINE) or [block]:
            assert f"{typed}\n" in f"{chinese}\n"
    assert len(english.encode()) <= 10_000


def test_links_lead_somewhere() -> None:
    for text in TEXTS:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text.read_text(encoding="utf-8")):
            file, _, part = target.partition("#")
            linked = (text.parent / file) if file else text
            assert linked.exists(), f"{text.name}: {target}"
            titles = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE) if part else []
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles} | {""}
            assert part in anchors, f"{text.name}: {target}"


def test_help_page_is_current() -> None:
    typer = Path(sys.executable).with_name("typer")
    command = [typer, "yi_tune.cli", "utils", "docs", "--name", "yi-tune", "--title", "yi-tune"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "help.md").read_text(encoding="utf-8").strip() == page.stdout.replace("\b\n", "").strip(), (
        "run `make docs`"
    )


def test_file_tree_names_every_module() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for module in (ROOT / "src" / "yi_tune").rglob("*.py"):
        assert module.name.startswith("__") or re.search(rf"^ +{module.name}( |$)", tree, re.MULTILINE), module
