import io
import re
import time

import pytest

from yi_tune.output import TextConsole
from yi_tune.progress import Progress


def written(steps: int, first: int = 0, evaluate: int = 25) -> list[str]:
    """The lines that a training run writes where there is no terminal. The loss of a step is its number."""
    file = io.StringIO()
    with Progress(TextConsole(file=file, width=200)) as progress:
        progress.stage("Loading")
        progress.begin(steps, first)
        for step in range(first + 1, steps + 1):
            progress.step(step)
            progress.figures({"loss": step, "learning_rate": 1e-3, "train_tokens_per_second": 1234.5}, 1_300_000_000)
            if step % evaluate == 0:
                progress.figures({"eval_loss": 0.5}, 1)
        progress.stage("Asking who it is")
    lines = file.getvalue().splitlines()
    assert (lines[0], lines[-1]) == ("Loading ...", "Asking who it is ...")
    return lines[1:-1]


def test_plain_lines() -> None:
    lines = written(100)
    assert all(line.startswith("step ") for line in lines)
    assert re.fullmatch(r"step 12/100  loss 7\.5000  lr 1\.0e-03  1234 tok/s  1\.3 GB  \d+ s left", lines[1])
    # How long it takes is told as soon as it is known.
    assert re.match(r"step 2/100 .* \d+ s left$", lines[0])
    # The loss is the mean of the last ten.
    (evaluated,) = [line for line in lines if line.startswith("step 25/100 ")]
    assert re.search(r" loss 20\.5000 .* eval 0\.5000 ", evaluated)
    assert re.fullmatch(r"step 100/100 .* 0 s left", lines[-1])
    resumed = written(100, first=60)
    assert resumed[0].startswith("step 61/100 ")
    assert resumed[-1].startswith("step 100/100 ")
    assert len(resumed) <= 8


@pytest.mark.parametrize("steps", [1, 7, 18, 100, 5000])
def test_not_too_many_lines(steps: int) -> None:
    evaluate = max(steps // 4, 1)
    assert 1 <= len(written(steps, evaluate=evaluate)) <= 11 + steps // evaluate


@pytest.mark.parametrize("width", [40, 80])
def test_terminal_has_one_live_line(width: int) -> None:
    file = io.StringIO()
    console = TextConsole(file=file, width=width, force_terminal=True, color_system=None)
    with Progress(console) as progress:
        progress.stage("Loading")
        progress.begin(1800, 0)
        progress.step(1234)
        logs = {"loss": 2.5, "learning_rate": 1e-3, "train_tokens_per_second": 12345}
        progress.figures(logs, 10_300_000_000)
        progress.figures({"eval_loss": 0.5}, 1)
        time.sleep(0.3)  # it is drawn ten times a second
        progress.stage("Asking who it is")
        time.sleep(0.3)
    drawn = file.getvalue().split("\x1b[2K")
    assert "Loading" in file.getvalue()
    trained = [frame for frame in drawn if "step 1234" in frame]
    assert trained
    for frame in trained:
        (line,) = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", frame).strip("\r\n").splitlines()
        assert len(line) <= width
        if width >= 80:
            assert "step 1234/1800 loss 2.5000 lr 1.0e-03 12345 tok/s 10.3 GB eval 0.5000" in line
            assert re.search(r"\d:\d\d$|--:--$", line.strip())
    # Nobody knows how long that takes.
    asking = "".join(frame for frame in drawn if "Asking who it is" in frame)
    assert asking
    assert not re.search(r"step|\d:\d\d|--:--", asking)
    # Nothing but the bar, which is drawn over and gone in the end.
    assert not re.search(r"Loading \.\.\.| s left", file.getvalue())
    assert drawn[-1].strip() == ""
