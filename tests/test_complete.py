"""What the shell completes: in this process, and by the script that each shell sources."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from click.shell_completion import ShellComplete

from tests.test_cli import ENGINE, HEAVY, YI_TUNE, completing, imported_by
from yi_tune import cli
from yi_tune.models import Origin

# By the shell: it prints the completions of each line, and a line that ends them.
SHELLS = {
    "bash": """eval "$(_YI_TUNE_COMPLETE=source_bash yi-tune)"
        for line in "$@"; do
            COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            [[ $line != *' ' ]] || COMP_CWORD=${#COMP_WORDS[@]}
            _yi_tune_completion yi-tune; printf '%s\\n' "${COMPREPLY[@]}" .
        done""",
    "zsh": """compdef() { :; }; _files() { :; }
        _arguments() { eval "values=${${1#*: :\\(}%\\)}"; print -l -- $values; }
        eval "$(_YI_TUNE_COMPLETE=source_zsh yi-tune)"
        for line in "$@"; do
            words=(${=line}) CURRENT=${#words}
            [[ $line != *' ' ]] || { words+=''; CURRENT=$((CURRENT + 1)); }
            _yi_tune_completion; print .
        done""",
    "fish": """_YI_TUNE_COMPLETE=source_fish yi-tune | source
        for line in $argv; complete -C $line; echo .; end""",
}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with a run that is not finished and a downloaded model, whose names no other has."""
    run, model = tmp_path / "my place" / "saves" / "nano" / "小易", tmp_path / "my place" / "models" / "mine"
    for folder in (run, model):
        folder.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    Origin("", "somebody/mine", None, None).write(model)
    return tmp_path / "my place"


@pytest.mark.parametrize("shell", SHELLS)
def test_shells(shell: str, workspace: Path, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    (tmp_path / "rows.jsonl").touch()
    expected = {
        "yi-tune chat --model some": ["somebody/mine"],
        "yi-tune train --run ": ["小易"],
        "yi-tune train --config qlora-": ["qlora-8bit"],
        "yi-tune train --set lora_al": ["lora_alpha="],
        # None of yi-tune's: the shell has its own, which are files.
        "yi-tune train --data row": ["rows.jsonl"] if shell == "fish" else [],
    }
    environment = {**os.environ, "PATH": f"{YI_TUNE.parent}:{os.environ['PATH']}", "YI_TUNE_WORKSPACE": str(workspace)}
    environment |= {"LC_ALL": "C.UTF-8"}
    command = [shell, *([] if shell == "fish" else ["-f"] if shell == "zsh" else ["--norc"]), "-c", SHELLS[shell]]
    command += [*([] if shell == "fish" else ["-"]), *expected]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.stderr == ""
    completed: list[list[str]] = [[]]
    for line in done.stdout.splitlines():
        completed = [*completed, []] if line == "." else [*completed[:-1], [*completed[-1], line]]
    assert completed == [*expected.values(), []]


@pytest.mark.parametrize(
    ("typed", "heavy"),
    [
        ("config show ", ENGINE | {"rich"}),
        ("chat --run ", ENGINE | {"rich"}),
        ("train --model ", HEAVY),
        ("train --set ", HEAVY),
    ],
)
def test_nothing_heavy_is_imported(typed: str, heavy: set[str]) -> None:
    assert not imported_by([str(YI_TUNE)], completing(typed)) & heavy


def completed(typed: str) -> list[str]:
    """What may come after those words."""
    shell = ShellComplete(typer.main.get_command(cli.app), {}, "yi-tune", "")
    return [item.value for item in shell.get_completions(typed.split(), "")]


def test_what_each_command_takes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YI_TUNE_WORKSPACE", str(workspace))
    finished = workspace / "saves" / "nano" / "done"
    finished.mkdir()
    for file in ("run.json", "report.json"):
        (finished / file).write_text("{}")
    for command in ("chat --run", "check --run", "export --run", "train --from-run"):
        assert completed(command) == ["done"], command
    for command in ("train --run", "runs show", "runs rm"):
        assert completed(command) == ["done", "小易"], command
    assert "chat" in completed("config show")
    assert completed("train --config") == ["lora", "qlora", "qlora-8bit", "tutorial"]


def test_workspace_that_is_typed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workspace.parent))
    workspace.rename(workspace.parent / "place")
    for typed in ("runs --workspace ~/place rm", "runs rm --workspace ~/place", "train --workspace=~/place --run"):
        assert completed(typed) == ["小易"], typed
