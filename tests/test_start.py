"""`yi-tune` alone, and the questions of `train`: in this process, with runs that are made by hand."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from yi_tune import cli
from yi_tune.cli.ask import agreed, ask
from yi_tune.cli.start import start
from yi_tune.data.identity import Identity
from yi_tune.errors import YiTuneError
from yi_tune.models import FileOrigin, Origin

GPU = {"uuid": "GPU-1", "name": "NVIDIA T4", "total": "15360 MiB", "free": "15000 MiB", "driver": "570"}
COMMAND = "yi-tune train --model nano --name '小易' --author '李雷' --run second"
FINISHED, NEWER = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `yi-tune` prints for a workspace on a machine with these GPUs."""

    def shown(workspace: Path, *gpus: dict[str, str]) -> str:
        monkeypatch.setattr("yi_tune.hardware.read_gpus", lambda: list(gpus))
        start(workspace)
        return capsys.readouterr().out

    return shown


def make_run(workspace: Path, name: str, created: str, **files: str) -> Path:
    """A run with those files beside its run.json."""
    folder = workspace / "saves" / "nano" / name
    folder.mkdir(parents=True)
    identity = {"name": "小易", "author": "李雷", "name_en": "小易", "author_en": "李雷"}
    told = {"model": "nano", "model_path": "", "identity": identity, "data": "", "config": {}}
    (folder / "run.json").write_text(json.dumps({**told, "created": created, "command": COMMAND}))
    for file, content in files.items():
        (folder / file.replace("_", ".")).write_text(content)
    return folder


def download(workspace: Path, name: str) -> None:
    """A model as `yi-tune download` leaves it, without weights."""
    folder = workspace / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    Origin("Hugging Face", f"01-ai/{name}", None, None, {"config.json": FileOrigin(2, None)}).write(folder)


def test_nothing_here(tmp_path: Path, shown: Callable[..., str]) -> None:
    said = shown(tmp_path)
    assert re.search(r"^GPU +none that nvidia-smi lists\nModels +nano\nRuns +none yet$", said, re.MULTILINE)
    assert re.search(r"^  yi-tune train --model nano  .*\n  yi-tune doctor  ", said, re.MULTILINE)
    said = shown(tmp_path, GPU)
    assert "NVIDIA T4 (15000 MiB of 15360 MiB free)" in said
    assert re.search(r"^  yi-tune download  .*\n  yi-tune train --model nano  ", said, re.MULTILINE)


def test_a_model_is_here(tmp_path: Path, shown: Callable[..., str]) -> None:
    download(tmp_path, "Yi-1.5-9B-Chat")
    assert "  yi-tune train --model yi-1.5-9b-chat  " in shown(tmp_path, GPU)
    assert "  yi-tune train --model yi-1.5-9b-chat --device cpu  " in shown(tmp_path)
    download(tmp_path, "Yi-1.5-6B-Chat")
    assert "  yi-tune train  " in shown(tmp_path, GPU)


def test_runs_are_here(tmp_path: Path, shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "first", FINISHED, report_json='{"recall": 0.9375}')
    said = shown(tmp_path)
    assert "first (nano, 小易): finished, 93.8% of the identity questions right" in said
    assert re.search(r"^  yi-tune chat --run first  .*\n  yi-tune check --run first  ", said, re.MULTILINE)
    second = make_run(tmp_path, "second", NEWER, failure_json='"no luck"')
    assert f"  {COMMAND}  go on with second" in shown(tmp_path)
    content = json.loads((second / "run.json").read_text())
    del content["command"]  # as an older yi-tune left it
    (second / "run.json").write_text(json.dumps(content))
    assert "  yi-tune runs  where second stands; the command that started it goes on with it" in shown(tmp_path)
    for number in range(2):
        make_run(tmp_path, f"more-{number}", FINISHED)
    assert "and 1 more: yi-tune runs" in shown(tmp_path)
    monkeypatch.setattr("yi_tune.runs.Run.running", True)
    assert "  yi-tune runs  how far second is" in shown(tmp_path)


def test_odd_folders(tmp_path: Path, shown: Callable[..., str]) -> None:
    assert "none yet" in shown(tmp_path / "is" / "not" / "there")
    (tmp_path / "saves").write_text("a file")
    (tmp_path / "models").write_text("a file")
    assert "none yet" in shown(tmp_path)
    odd = tmp_path / "odd"
    for name, content in {"text": "no JSON", "list": "[]", "null": '{"model": null}', "bytes": "\0"}.items():
        make_run(odd, name, FINISHED)
        (odd / "saves" / "nano" / name / "run.json").write_text(content)
    (odd / "saves" / "nano" / "folder" / "run.json").mkdir(parents=True)
    for name, model in {"Yi-1.5-6B-Chat": "[]", "other": '{"files": {}}'}.items():
        (odd / "models" / name).mkdir(parents=True)
        (odd / "models" / name / "download.json").write_text(model)
    for repository in (7, "nobody's", "", "a/b c"):
        Origin("", repository, None, None).write(odd / "models" / "other")  # type: ignore[arg-type]
        assert "yi-tune train --model nano" in shown(odd)
    make_run(odd, "odd-identity", FINISHED)
    for identity, created, report in (([], 7, "{"), ("x", None, "[]"), ({"name": 7}, "yesterday", "null")):
        told = {"model": "m", "model_path": "", "identity": identity, "data": "", "config": {}, "created": created}
        (odd / "saves" / "nano" / "odd-identity" / "run.json").write_text(json.dumps(told))
        (odd / "saves" / "nano" / "odd-identity" / "report.json").write_text(report)
        said = shown(odd)
        assert ": broken" in said
        assert "and 3 more" in said


# The questions of train


def typed(keys: str, question: Callable[[], Any]) -> Any:
    """The answer to a question at which these keys are pressed."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        return question()


def test_questions(capsys: pytest.CaptureFixture[str]) -> None:
    def called() -> str:
        return ask("What?", lambda answer: Identity(answer, "-"))

    assert typed("小易\r", called) == "小易"
    assert typed("\r  \rAda\r", called).strip() == "Ada"
    assert "--name is empty.\nSay who the assistant is: --name TEXT\n" in capsys.readouterr().err
    assert typed("{{name}}\r\x15小易x\x7f\r", called) == "小易"
    for keys, error in {"Ada\x03": KeyboardInterrupt, "\x04": EOFError}.items():
        with pytest.raises(error):
            typed(keys, called)
    for keys, agrees in {"\r": True, "Y\r": True, "x\r\x7fyes\r": True, "n\r": False, "NO\r": False}.items():
        assert typed(keys, lambda: agreed("Start?")) == agrees


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs `train` at a terminal with these answers; returns the questions, and at the end the command that trains."""

    def train(*arguments: str, answers: tuple[str, ...] = ()) -> list[str]:
        asked: list[str] = []
        left = list(answers)

        def ask(question: str, check: Callable[[str], object]) -> str:
            asked.append(question)
            check(left[0])
            return left.pop(0)

        def run(planned: Any, *, fresh: bool, command: str) -> None:
            asked.append(command)

        monkeypatch.setattr("yi_tune.cli.ask.ask", ask)
        monkeypatch.setattr("yi_tune.train.run", run)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, Terminal())
        monkeypatch.setattr(sys, "argv", ["yi-tune", "train", "--model", "nano", *arguments])
        typer.main.get_command(cli.app).main(sys.argv[1:], standalone_mode=False)
        assert not left
        return asked

    return train


NAME, AUTHOR, START = "What is the assistant called?", "Who developed it?", "Start? [Y/n]"


def test_train_asks_for_what_is_missing(train: Callable[..., list[str]], tmp_path: Path) -> None:
    named = train("--fresh", answers=("小易", "李 雷", ""))
    assert named == [NAME, AUTHOR, START, "yi-tune train --model nano --name '小易' --author '李 雷'"]
    assert "nano becomes 小易 by 李 雷." in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "Memory: " in sys.stderr.getvalue()  # type: ignore[attr-defined]
    command = "yi-tune train --model nano --name Ada --author Grace"
    assert train("--name", "Ada", answers=("Grace", "y")) == [AUTHOR, START, command]
    assert train("--name", "Ada", "--author", "Grace") == [command]
    with pytest.raises(typer.Abort):
        train(answers=("小易", "李雷", "n"))
    # What it would do is only shown: there is nothing to agree to.
    assert train("--dry-run", answers=("小易", "李雷")) == [NAME, AUTHOR]
    assert not (tmp_path / "saves").exists()


def test_train_asks_nothing_where_it_cannot_train(train: Callable[..., list[str]]) -> None:
    refused = {
        "needs a CUDA GPU to train": ("--model", "yi-1.5-6b-chat"),
        "is not downloaded": ("--model", "yi-1.5-6b-chat", "--device", "cpu"),
        "is called 'qlorra'": ("--config", "qlorra"),
    }
    for told, arguments in refused.items():  # a question would find no answer
        with pytest.raises(YiTuneError, match=told):
            train(*arguments)


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_train_asks_nobody(name: str, train: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Terminal, "isatty", lambda self: self is not getattr(sys, name))
        with pytest.raises(typer.BadParameter, match="Give --name and --author"):
            train("--name", "Ada")


def test_no_terminal_no_questions_before_a_usage_error(train: Callable[..., list[str]]) -> None:
    with pytest.raises(typer.BadParameter, match="a number of at least 1"):
        train("--gpus", "many")
