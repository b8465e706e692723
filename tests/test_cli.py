"""The command line, as far as it gets without a model: in this process, but for its start and its imports."""

import io
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from rich.cells import cell_len

from tests.conftest import processor_seconds
from yi_tune import cli
from yi_tune.config import find_config, shipped
from yi_tune.errors import YiTuneError
from yi_tune.language import chosen as chosen_language

ENGINE = {"torch", "transformers", "llamafactory", "peft", "huggingface_hub", "modelscope", "numpy"}
# What takes its time too, and is not needed to print help.
HEAVY = ENGINE | {"rich", "yaml"}
TRAIN = ("train", "--model", "nano", "--name", "小易", "--author", "李雷")
YI_TUNE = Path(sys.executable).with_name("yi-tune")
# What a shell completes quickly.
COMPLETED = ("", "train --model ", "train --set ", "train --config ", "chat --run ", "runs rm ", "download ")


@dataclass(frozen=True)
class Done:
    """A command that came to its end."""

    returncode: int
    stdout: str
    stderr: str


class Cli:
    """Runs commands in this process, as on a machine without a GPU."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._captured, self._patches = capfd, monkeypatch

    def __call__(self, *arguments: "str | Path | bytes", stdin: str = "", **environment: str) -> Done:
        """Run a command to its end."""
        self._captured.readouterr()
        with self._patches.context() as patch:
            # On the descriptors themselves, which the engine's output is kept from, and not pytest's files.
            for number, name in ((1, "stdout"), (2, "stderr")):
                patch.setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            patch.setattr(sys, "argv", ["yi_tune", *map(os.fsdecode, arguments)])
            # LANGUAGE, which a command sets, is as before when it has ended.
            for name, value in {"CUDA_VISIBLE_DEVICES": "", "LANGUAGE": "", **environment}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            sys.stdout.flush()
            sys.stderr.flush()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *self._captured.readouterr())

    def complaint(self, *arguments: "str | Path | bytes", **environment: str) -> str:
        """The message of a command that fails: a line of what happened, a line of what to do, and no more."""
        done = self(*arguments, **environment)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        what, remedy = done.stderr.splitlines()
        assert what.startswith("Error: ")
        assert remedy
        return f"{what}\n{remedy}"


@pytest.fixture
def yi_tune(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line."""
    return Cli(capfd, monkeypatch)


def test_as_a_process() -> None:
    done = subprocess.run([sys.executable, "-m", "yi_tune", "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"yi-tune {version('yi-tune')}\n", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(flag: str, yi_tune: Cli) -> None:
    done = yi_tune(flag)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("download", "models", "train", "chat", "check", "export", "serve", "web", "doctor", "runs"):
        assert re.search(rf"^ +{command} +\w", done.stdout, re.MULTILINE)
        of_command = yi_tune(command, flag)
        assert (of_command.returncode, of_command.stderr) == (0, "")
        assert f"yi_tune {command} [OPTIONS]" in of_command.stdout
    assert "yi_tune config copy [OPTIONS]" in yi_tune("config", "copy", flag).stdout
    assert "--model nano" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--name", "x"), "--author"),
        (("train", "--name", "x", "--author", "y", "--epochs", "3"), "No such option"),
        (("chat", "--temperature", "hot"), "hot"),
        (("chat", "--prompt", " "), "Invalid value for --prompt: it is empty."),
        (("check", "--min-recall", "2"), "--min-recall"),
    ],
)
def test_usage_error(arguments: tuple[str, ...], said: str, yi_tune: Cli) -> None:
    done = yi_tune(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def imported(*arguments: str) -> set[str]:
    """The top-level packages that a command imports."""
    return imported_by(["-m", "yi_tune", *arguments], {})


def completing(typed: str) -> dict[str, str]:
    """The environment in which bash asks what comes after those words."""
    words = f"yi-tune {typed}"
    return {"_YI_TUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}


def imported_by(command: list[str], environment: dict[str, str]) -> set[str]:
    """The top-level packages that Python imports for these arguments of its own."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "typer" in done.stderr
    return {match.split(".")[0] for match in re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)}


@pytest.mark.parametrize(
    ("arguments", "environment", "language"),
    [
        (("--lang", "zh"), {"YI_TUNE_LANG": "en"}, "zh"),
        (("--lang=en",), {"YI_TUNE_LANG": "zh", "LANG": "zh_CN"}, "en"),
        (("train", "--lang", "zh"), {"LANG": "en_US.UTF-8"}, "en"),
        ((), {"YI_TUNE_LANG": "zh", "LC_ALL": "en_US.UTF-8"}, "zh"),
        ((), {"LC_ALL": "zh_TW.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ((), {"LANGUAGE": "zh_CN:en", "LANG": "en_US.UTF-8"}, "zh"),
        ((), {"LC_ALL": "", "LC_MESSAGES": "de_DE", "LANG": "zh_CN.GBK"}, "en"),
        ((), {"LANG": "zh_HK"}, "zh"),
        ((), {}, "en"),
    ],
)
def test_language(arguments: tuple[str, ...], environment: dict[str, str], language: str) -> None:
    assert chosen_language(arguments, environment) == language


def test_help_in_chinese(yi_tune: Cli) -> None:
    for command in ((), ("train",), ("download",), ("runs", "rm"), ("config", "copy")):
        done = yi_tune("--lang", "zh", *command, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        title, _, *lines = done.stdout.splitlines()
        assert title.startswith("用法")
        assert max(map(cell_len, lines)) <= 80
        # Of the English there are names left, values and examples.
        english = re.compile(r"[A-Za-z]{3,} [a-z]{3,} [a-z]{3,}\b")
        assert not [line for line in lines if english.search(line) and "yi-tune" not in line]
        # No line begins with what ends a phrase.
        assert not re.findall(r"^ *[，。；：、）”]", done.stdout, re.MULTILINE)
    assert "yi-tune train --model nano" in yi_tune("train", "--help", YI_TUNE_LANG="zh").stdout


def test_usage_error_in_chinese(yi_tune: Cli) -> None:
    done = yi_tune("--lang", "zh", "train", "--nmae", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "错误：没有选项 '--nmae'。" in done.stderr
    for wrong in (yi_tune("--lang", "fr", "models"), yi_tune("models", YI_TUNE_LANG="fr")):
        assert wrong.returncode == 2
        assert "'fr' is not one of 'en', 'zh'." in wrong.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("--lang", "zh", "--help"), ("train", "--nmae", "x")])
def test_nothing_heavy_is_imported(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & HEAVY


@pytest.mark.parametrize("arguments", [("config", "ls"), ("check",), ("web",), (*TRAIN, "--run", "a/b")])
def test_no_engine_is_imported(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & ENGINE


def test_models_imports_no_torch() -> None:
    assert not imported("models") & (ENGINE - {"huggingface_hub", "numpy"})


def test_starts_fast() -> None:
    """In seconds of the processor, which what runs beside it does not change much."""
    commands = {
        "nothing": ["-c", "pass"],
        "typer": ["-c", "import typer"],
        "--help": ["-m", "yi_tune", "--help"],
        "--help in Chinese": ["-m", "yi_tune", "--lang", "zh", "--help"],
        "--version": ["-m", "yi_tune", "--version"],
        "usage error": ["-m", "yi_tune", "train", "--nmae", "x"],
        **{typed: [str(YI_TUNE)] for typed in COMPLETED},
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    # In turn, so that whatever else this machine does slows all of them.
    for _ in range(5):
        for name, arguments in commands.items():
            began = processor_seconds()
            environment = {**os.environ, **(completing(name) if name in COMPLETED else {})}
            subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
            seconds[name].append(processor_seconds() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name in commands:
        if name in COMPLETED:
            assert min(seconds[name]) - min(seconds["nothing"]) <= 0.3, medians
        else:
            assert medians[name] <= 2.5 * medians["typer"], medians


def below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command and those below it, by what is typed."""
    yield name, command
    for below_it, sub in getattr(command, "commands", {}).items():
        yield from below(sub, f"{name} {below_it}")


COMMANDS = dict(below(typer.main.get_command(cli.app), "yi-tune"))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "yi-tune"])
def test_help_has_examples_that_work(name: str, yi_tune: Cli) -> None:
    shown = yi_tune(*name.split()[1:], "--help").stdout
    assert "\n  Examples:\n\n      " in shown
    examples = [
        line.strip() for line in shown.split("Examples:")[1].split("\nOptions:")[0].splitlines() if line.strip()
    ]
    examples = [line for line in examples if line.startswith(("yi-tune ", "echo "))]
    # On lines of their own, as they are typed.
    assert examples == [line.strip() for line in COMMANDS[name].help.splitlines() if "    " in line]
    assert len(examples) >= (2 if COMMANDS[name].params else 1)
    for example in examples:
        words = shlex.split(example.rpartition(" | ")[2])
        typed = words.pop(0)
        while words and words[0] in getattr(COMMANDS[typed], "commands", ()):
            typed = f"{typed} {words.pop(0)}"
        assert typed.startswith(name)
        COMMANDS[typed].make_context(typed, words or ["--"]).close()


# config


def test_config(yi_tune: Cli, tmp_path: Path) -> None:
    listed = yi_tune("config", "ls")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(shipped())
    assert all(len(line.split()) > 2 for line in listed.stdout.splitlines())
    for name in shipped():
        assert yi_tune("config", "show", name) == Done(0, find_config(name).read_text(encoding="utf-8"), "")
    assert yi_tune("config", "copy", "tutorial").stdout == "tutorial.yaml\n"
    assert yi_tune("config", "copy", "tutorial", "my own.yaml").stdout == "my own.yaml\n"
    for copy in ("tutorial.yaml", "my own.yaml"):
        assert (tmp_path / copy).read_text(encoding="utf-8") == find_config("tutorial").read_text(encoding="utf-8")


def test_config_copy_overwrites_nothing(yi_tune: Cli, tmp_path: Path) -> None:
    (tmp_path / "qlora.yaml").write_text("mine")
    said = yi_tune.complaint("config", "copy", "qlora")
    assert "qlora.yaml is there already." in said
    assert "yi-tune config copy NAME FILE" in said
    assert (tmp_path / "qlora.yaml").read_text() == "mine"


def test_config_that_cannot_be_shown(yi_tune: Cli, tmp_path: Path) -> None:
    assert "Did you mean tutorial?" in yi_tune.complaint("config", "show", "tutorail")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    said = yi_tune.complaint("config", "copy", "binary.yaml", "new.yaml")
    assert "binary.yaml cannot be read: " in said
    assert "UTF-8" in said
    assert not Path("new.yaml").exists()


# Errors of train, before anything heavy


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a GPU that another test may have shown to torch already."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (("--name", " "), "--name is empty", "--name TEXT"),
        (("--model", ""), "Unknown model ''", "Known: "),
        (("--model", "nanoo"), "Unknown model 'nanoo'", "Did you mean nano?"),
        (("--config", "qlorra"), "No config is called 'qlorra'", "Did you mean qlora?"),
        (("--config", "broken.yaml"), "broken.yaml is not YAML, line 2, column ", "Mend"),
        (("--set", "learning_rate"), "--set 'learning_rate' is not key=value", "--set num_train_epochs=5"),
        (("--run", "a/b"), "A run cannot be called 'a/b'", "letters"),
        (("--from-run", "a/b"), "A run cannot be called 'a/b'", "letters"),
        (("--from-run", "none"), "There is no run called 'none'", "yi-tune train"),
        (("--from-run", "identity"), "'identity' cannot start from itself", "--run NAME"),
        (("--workspace", "a, b"), "a, b/saves/nano/identity has a comma", "Rename"),
        (("--name", "[bold]{{"), "--name '[bold]{{' holds '{{'", "Remove"),
        (("--gpus", "2"), "--gpus 2: torch sees no GPU.", "--device cpu --gpus 2"),
        (("--gpus", "3", "--device", "cpu"), "3 x 2 x 1 makes 6 rows a step, not 8", "--gpus 2, 4 or 8"),
        (("--gpus", "2", "--device", "cpu", "--config", "tutorial"), "2 x 1 x 8 makes 16 rows a step, not 8", "--set"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_train_refuses(
    arguments: tuple[str | bytes, ...], what: str, remedy: str, tmp_path: Path, yi_tune: Cli
) -> None:
    (tmp_path / "broken.yaml").write_text("stage: sft\nlearning_rate: : 3\n")
    said = yi_tune.complaint(*TRAIN, *arguments).splitlines()
    assert what in said[0]
    assert remedy in said[1]
    assert not (tmp_path / "saves").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--shard", "fsdp"), "--shard fsdp needs GPUs. On a CPU, --shard zero2 --gpus 2"),
        (("--shard", "zero2"), "--shard divides a model among GPUs: add --gpus 2 or more"),
    ],
)
def test_sharding_that_would_divide_nothing(arguments: tuple[str, ...], told: str, yi_tune: Cli) -> None:
    done = yi_tune(*TRAIN, "--device", "cpu", *arguments)
    assert (done.returncode, told in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("gpus", "told"),
    [("0", "of at least 1"), ("many", "a number of at least 1, or `all`"), ("all", "number of processes")],
)
def test_gpus_are_a_number_or_all(gpus: str, told: str, yi_tune: Cli) -> None:
    for command in (TRAIN, ("check",)):
        done = yi_tune(*command, "--device", "cpu", "--gpus", gpus)
        assert done.returncode == 2
        assert told in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--nodes=2",),
        ("--nodes=2", "--master=host"),
        ("--master=host:1",),
        ("--nodes=2", "--master=host:1", "--node-rank=2"),
    ],
)
def test_machines_have_an_address_and_a_number(options: tuple[str, ...], yi_tune: Cli) -> None:
    done = yi_tune(*TRAIN, *options)
    assert done.returncode == 2
    assert "--master HOST:PORT and --node-rank" in done.stderr


@pytest.mark.usefixtures("no_gpu")
def test_machines_share_the_rows_and_have_no_replay(yi_tune: Cli) -> None:
    machines = ("--nodes=2", "--master=host:1", "--node-rank=1", "--device=cpu", "--gpus=2", "--dry-run")
    done = yi_tune(*TRAIN, *machines)
    assert done.returncode == 0, done.stderr
    assert "The 8 rows of a step: 2 x 1 on each of 4 processes of 2 machines, each with the whole model." in done.stderr
    assert yaml.safe_load(done.stdout)["save_on_each_node"] is True
    assert "--replay 0" in yi_tune.complaint(*TRAIN, *machines, "--replay=8")


@pytest.mark.usefixtures("no_gpu")
def test_rows_that_the_user_gives_each_process(yi_tune: Cli) -> None:
    sets = ("--set=per_device_train_batch_size=2", "--set=gradient_accumulation_steps=4")
    done = yi_tune(*TRAIN, "--device=cpu", "--gpus=3", "--dry-run", *sets)
    assert done.returncode == 0, done.stderr
    assert "The 24 rows of a step: 2 x 4 on each of 3 processes, each with the whole model." in done.stderr


# Errors of train that ask torch or LLaMA-Factory


@pytest.mark.usefixtures("no_gpu")
def test_yi_needs_a_gpu(yi_tune: Cli) -> None:
    said = yi_tune.complaint("train", "--name", "小易", "--author", "李雷")
    assert "yi-1.5-6b-chat needs a CUDA GPU" in said
    for remedy in ("yi-tune doctor", "--device cpu", "--model nano"):
        assert remedy in said
    assert not Path("saves").exists()


@pytest.mark.usefixtures("no_gpu")
def test_yi_on_the_cpu(yi_tune: Cli) -> None:
    identity = ("--name=小易", "--author=李雷", "--dry-run")
    for chosen in ("--device=cpu", "--set=use_cpu=true"):
        done = yi_tune("train", *identity, chosen)
        assert done.returncode == 0, done.stderr
        config = yaml.safe_load(done.stdout)
        assert (config["use_cpu"], config["dataset"]) == (True, "identity")
        assert "No replay: on the CPU" in done.stderr
        assert "of RAM free" in done.stderr
        assert "needs a CUDA GPU" not in done.stderr
    done = yi_tune("train", *identity, "--device=cpu", "--replay=64")
    assert yaml.safe_load(done.stdout)["dataset"] == "identity,replay"
    assert "No replay" not in done.stderr


@pytest.mark.usefixtures("no_gpu")
def test_dry_run_of_what_is_not_downloaded(yi_tune: Cli) -> None:
    identity = ("--name=小易", "--author=李雷", "--replay=0")
    done = yi_tune("train", "--config=tutorial", *identity, "--dry-run", "--set=run_name=a=b")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    tutorial = yaml.safe_load(find_config("tutorial").read_text(encoding="utf-8"))
    paths = {"model_name_or_path", "dataset_dir", "output_dir"}
    assert {key: value for key, value in config.items() if key not in paths} == {
        **{key: value for key, value in tutorial.items() if key not in paths},
        "run_name": "a=b",
    }
    assert config["output_dir"] == str(Path("saves/Yi-1.5-6B-Chat/identity").absolute())
    # Beside it, on stderr, the changed keys with where each value is from, and what stands in the way.
    told = [line.split() for line in done.stderr.splitlines() if not line.startswith(("Note:", "Memory:", "Time:"))]
    sources = {words[0]: words[2] for words in told}
    paths = {"model_name_or_path": "model", "dataset_dir": "data", "output_dir": "run"}
    assert sources == {"key": "from", **paths, "run_name": "flag"}
    assert "needs a CUDA GPU" in done.stderr
    assert "Time: not estimated; the progress tells it after the first steps." in done.stderr
    assert not Path("saves").exists()


# Errors of chat and check, before anything heavy


def finished_run(workspace: Path, model: Path) -> Path:
    """A finished run of a model in that folder."""
    folder = workspace / "saves" / "mine" / "identity"
    folder.mkdir(parents=True)
    identity = {"name": "小易", "author": "李雷", "name_en": "Ada", "author_en": "Grace"}
    told = {"model": str(model), "model_path": str(model), "identity": identity, "data": "identity-0.jsonl"}
    (folder / "run.json").write_text(json.dumps({**told, "config": {}}))
    (folder / "report.json").write_text("{}")
    (folder / "chat.yaml").write_text("template: yi\n")
    return folder


@pytest.mark.parametrize("command", ["chat", "check", "serve", "web"])
def test_no_finished_run(command: str, tmp_path: Path, yi_tune: Cli) -> None:
    said = yi_tune.complaint(command)
    assert f"There is no finished run in {tmp_path / 'saves'}" in said
    assert "yi-tune train --name NAME --author AUTHOR" in said
    (finished_run(tmp_path, tmp_path) / "report.json").unlink()
    assert "There is no finished run" in yi_tune.complaint(command)
    assert "The run 'identity' is not finished" in yi_tune.complaint(command, "--run", "identity")
    for other in ("other", "../mine/identity"):
        assert f"There is no run called '{other}'" in yi_tune.complaint(command, "--run", other)


def test_workspace_from_the_environment(tmp_path: Path, yi_tune: Cli) -> None:
    said = yi_tune.complaint("chat", YI_TUNE_WORKSPACE=str(tmp_path / "else where"))
    assert str(tmp_path / "else where" / "saves") in said
    said = yi_tune.complaint("chat", "--workspace", "flag", YI_TUNE_WORKSPACE=str(tmp_path / "else where"))
    assert str(tmp_path / "flag" / "saves") in said


def test_bad_sampling_is_refused_before_anything_is_looked_for(yi_tune: Cli) -> None:
    said = yi_tune.complaint("chat", "--temperature", "-1")
    assert "temperature -1.0 (takes 0 (greedy) to 2)" in said
    assert "seed -1 (" in yi_tune.complaint("chat", "--seed", "-1")


def test_empty_model_is_no_choice_of_all(tmp_path: Path, yi_tune: Cli) -> None:
    finished_run(tmp_path, tmp_path)
    for base in ((), ("--base",)):
        assert "Unknown model ''" in yi_tune.complaint("chat", *base, "--model", "")


# The boundary


def fails(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [RuntimeError("boom [bold]"), PermissionError(13, "denied", "/[bold]")])
def test_traceback_goes_to_the_log(
    error: Exception, tmp_path: Path, yi_tune: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "commands", lambda language: lambda: fails(error))
    for place in (str(tmp_path / "config"), "/dev/null"):
        what, where = yi_tune.complaint(XDG_CONFIG_HOME=place).splitlines()
        assert what == f"Error: {type(error).__name__}: {error}"
        assert ("fault of yi-tune's" in where) == isinstance(error, RuntimeError)
    logs = [tmp_path / "config" / "yi-tune" / "error.log", *tmp_path.glob("yi-tune-*/error.log")]
    assert str(logs[1]) in where
    for log in logs:
        assert "Traceback" in log.read_text()


def test_traceback_is_shown_to_who_debugs(yi_tune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "commands", lambda language: lambda: fails(YiTuneError("a", "b")))
    with pytest.raises(YiTuneError):
        yi_tune(YI_TUNE_DEBUG="1")
    assert yi_tune(YI_TUNE_DEBUG="0").returncode == 1


def test_error_is_printed_as_it_is(yi_tune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "[red]a[/] \\[b] 🚀 :cat: " + "long " * 60
    monkeypatch.setattr(cli, "commands", lambda language: lambda: fails(YiTuneError(message, "do [this]\\")))
    assert yi_tune() == Done(1, "", f"Error: {message}\ndo [this]\\\n")


# runs


def test_no_runs_yet(tmp_path: Path, yi_tune: Cli) -> None:
    done = yi_tune("runs", "--workspace", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "There is no run in" in done.stderr
    assert json.loads(yi_tune("runs", "--json", "--workspace", tmp_path).stdout) == []


def test_runs_rm(tmp_path: Path, yi_tune: Cli) -> None:
    there = finished_run(tmp_path / "there", tmp_path / "mine")
    here = finished_run(tmp_path, tmp_path / "mine")
    listed = json.loads(yi_tune("runs", "--json").stdout)
    assert [(found["run"], found["state"]) for found in listed] == [("identity", "finished")]
    for answer in ("n\n", ""):
        kept = yi_tune("runs", "rm", "identity", stdin=answer)
        assert kept.returncode == 1
        assert f"Delete {here}" in kept.stderr.replace("\n", "")
        assert here.is_dir()
    # The workspace, wherever its option stands.
    elsewhere = ("runs", "--workspace", tmp_path / "there", "rm", "identity", "--yes")
    done = yi_tune(*elsewhere, YI_TUNE_WORKSPACE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert here.is_dir()
    assert not there.exists()
    thesis = here.with_name("thesis")
    thesis.mkdir()
    assert yi_tune("runs", "rm", "identity", "--workspace", tmp_path, stdin="y\n").returncode == 0
    assert not here.exists()
    for name in ("identity", "thesis", "../mine"):
        assert f"There is no run called '{name}'" in yi_tune.complaint("runs", "rm", name, "--yes")
    assert thesis.is_dir()
