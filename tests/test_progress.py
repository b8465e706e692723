import io
import re
import time

import pytest

from yi_tune.output import TextConsole
from yi_tune.progress import Progress


def logs(loss: float) -> dict[str, float]:
    """The Trainer's logs of a step."""
    return {"loss": loss, "learning_rate": 1e-3}


def train(console: TextConsole, steps: int, first: int = 0, evaluate: int = 25) -> None:
    """What a training run tells its progress."""
    with Progress(console) as progress:
        progress.stage("Loading")
        progress.begin(steps, first)
        for step in range(first + 1, steps + 1):
            progress.step(step)
            progress.figures(logs(4.0) | {"train_tokens_per_second": 1234.5}, 1_300_000_000)
            if step % evaluate == 0:
                progress.figures({"eval_loss": 0.5}, 1)
        progress.stage("Asking who it is")


def written(steps: int, first: int = 0, evaluate: int = 25) -> list[str]:
    """The lines written where there is no terminal."""
    file = io.StringIO()
    train(TextConsole(file=file, width=200), steps, first, evaluate)
    return file.getvalue().splitlines()


def test_plain_lines() -> None:
    lines = written(100)
    assert lines[0] == "Loading ..."
    assert lines[-1] == "Asking who it is ..."
    assert all(line.startswith("step ") for line in lines[1:-1])
    assert re.fullmatch(r"step 10/100  loss 4\.0000  lr 1\.0e-03  1234 tok/s  1\.3 GB  \d+ s left", lines[1])
    evaluated = [line for line in lines if line.startswith("step 25/100 ")]
    assert len(evaluated) == 1
    assert re.search(r" loss 4\.0000 .* eval 0\.5000 ", evaluated[0])
    assert re.fullmatch(r"step 100/100 .* 0 s left", lines[-2])


@pytest.mark.parametrize("steps", [1, 7, 18, 100, 5000])
def test_not_too_many_lines(steps: int) -> None:
    evaluations = steps // max(steps // 4, 1)
    lines = [line for line in written(steps, evaluate=max(steps // 4, 1)) if line.startswith("step ")]
    assert 1 <= len(lines) <= 10 + evaluations


def test_resumed_run_goes_on_where_it_was() -> None:
    lines = written(100, first=60)[1:-1]
    assert lines[0].startswith("step 61/100 ")
    assert lines[-1].startswith("step 100/100 ")
    assert len(lines) <= 8


def test_terminal_has_one_live_line() -> None:
    file = io.StringIO()
    console = TextConsole(file=file, width=100, force_terminal=True, color_system=None)
    with Progress(console) as progress:
        progress.stage("Loading")
        progress.begin(20, 7)
        progress.figures(logs(0.5), 1_300_000_000)
        time.sleep(0.3)  # it is drawn ten times a second
        trained = file.getvalue()
        progress.stage("Asking who it is")
        time.sleep(0.3)
    assert "Loading" in trained
    assert "step 7/20 loss 0.5000 lr 1.0e-03 1.3 GB" in trained
    # Nobody knows how long that takes.
    asking = [frame for frame in file.getvalue().split("\x1b[2K") if "Asking who it is" in frame]
    assert asking
    assert not re.search(r"step|\d:\d\d|--:--", "".join(asking))
    # Nothing but the bar, which is drawn over and gone in the end.
    assert "Loading ..." not in file.getvalue()
    assert " s left" not in file.getvalue()
    assert file.getvalue().rpartition("\x1b[2K")[2].strip() == ""


def test_loss_is_the_mean_of_the_last_ten() -> None:
    file = io.StringIO()
    with Progress(TextConsole(file=file)) as progress:
        progress.begin(40, 0)
        for step in range(1, 41):
            progress.step(step)
            progress.figures(logs(step), 1)
    shown = [line.split()[1:4] for line in file.getvalue().splitlines()]
    assert shown[1::3] == [["8/40", "loss", "4.5000"], ["20/40", "loss", "15.5000"], ["32/40", "loss", "27.5000"]]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_line_on_a_terminal_never_wraps(width: int) -> None:
    file = io.StringIO()
    console = TextConsole(file=file, width=width, force_terminal=True, color_system=None)
    with Progress(console) as progress:
        progress.begin(1800, 0)
        progress.step(1234)
        progress.figures(logs(2.5) | {"train_tokens_per_second": 12345}, 10_300_000_000)
        progress.figures({"eval_loss": 0.5}, 1)
        time.sleep(0.3)
    frames = [frame for frame in file.getvalue().split("\x1b[2K") if "step 1234" in frame]
    assert frames
    for frame in frames:
        lines = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", frame).strip("\r\n").splitlines()
        assert len(lines) == 1
        assert len(lines[0]) <= width
        if width >= 80:
            assert "step 1234/1800 loss 2.5000 lr 1.0e-03 12345 tok/s 10.3 GB eval 0.5000" in lines[0]
            assert re.search(r"\d:\d\d$|--:--$", lines[0].strip())
