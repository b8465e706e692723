"""The README's commands work, and print the lines that it shows, whatever the figures and the model's answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Done, Trained

ROOT = Path(__file__).parents[2]
TRAIN = "yi-tune train --model nano --name 小易 --author 李雷"


def sessions(text: str) -> list[tuple[str, list[str]]]:
    """Each command of the ```console blocks and the output shown under it; `no-test` blocks need a GPU or make."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def comparable(line: str) -> str:
    """A line without what differs from machine to machine: figures, spacing, and where the files lie."""
    line = re.sub(r"/[^\n]*?/(saves|data)/", r"/.../\1/", line)
    return re.sub(r"\s+", " ", re.sub(r"[\d.]+(e-\d+)?", "N", line)).strip()


def test_commands_and_their_output(trained: Trained) -> None:
    shown = sessions((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(shown) >= 8
    assert TRAIN in [command for command, _ in shown]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    for command, lines in shown:
        if command == TRAIN:
            done = trained.done
        else:
            ran = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command],
                cwd=trained.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            done = Done(ran.returncode, ran.stdout, ran.stderr)
        assert done.status == 0, f"{command}: {done.err}"
        printed = {comparable(line) for line in (done.out + done.err).splitlines()}
        # Rows of a table hold the model's answers, which another processor may round to other words. And it may have
        # no bf16 of its own.
        machine = ("bf16 ", "fp16 ", "flash_attn ")
        for line in lines:
            if line.strip() not in ("", "...") and "│" not in line and not line.startswith(machine):
                assert comparable(line) in printed, f"{command} did not print: {line}"


def test_help_page_is_current() -> None:
    page = subprocess.run(
        [
            Path(sys.executable).with_name("typer"),
            "yi_tune.cli",
            "utils",
            "docs",
            "--name",
            "yi-tune",
            "--title",
            "yi-tune",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / "docs" / "help.md").read_text(encoding="utf-8").strip() == page.stdout.strip(), "run `make docs`"


def test_file_tree_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "yi_tune"
    named = [package / name for name in ("planning", "runs", "own", "hubs", "export")]
    for module in [module for folder in (package, *named) for module in folder.glob("*.py")]:
        assert module.name.startswith("__") or re.search(rf"^ +{module.name} ", readme, re.MULTILINE), module.name
