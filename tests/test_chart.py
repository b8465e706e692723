import io
import math

import pytest
from rich.console import Console

from yi_tune.runs.chart import draw_chart, print_end
from yi_tune.runs.history import History

FALLING = History(180, 180, {step: 4 * math.exp(-step / 20) for step in range(1, 181)}, {45: 2.0, 180: 0.5})


def dots(line: str) -> list[int]:
    """The columns of a line that hold dots."""
    return [at for at, character in enumerate(line) if "\u2800" < character <= "\u28ff"]


@pytest.mark.parametrize("width", [20, 40, 79, 200])
def test_chart(width: int) -> None:
    lines = draw_chart(FALLING, width, 12).splitlines()
    assert len(lines) == 12
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("3.")
    assert lines[-1].split() == ["step", "1", "180"]
    assert lines[-1].endswith("180")
    # From top left to bottom right, without a gap.
    curve = lines[:-2]
    assert dots(curve[0])[0] == 7
    assert dots(curve[-1])[-1] >= width - 2
    assert all(dots(line) for line in curve)
    assert sorted({column for line in curve for column in dots(line)} | {line.find("x") for line in curve} - {-1}) == [
        *range(7, width)
    ]


def test_evaluations_are_marked() -> None:
    lines = draw_chart(FALLING, 79, 12).splitlines()
    assert sum(line.count("x") for line in lines) == 2
    assert lines[9].endswith("x") or lines[8].endswith("x")


@pytest.mark.parametrize(
    "losses",
    [{1: 1.0, 2: 1.0}, {5: 2.0, 500: 1.0}, {1: 0.0, 2: 0.0, 3: 1e9}, {1: -1.0, 2: 3.0}, {1: 1e-9, 2: 2e-9}],
)
def test_odd_losses(losses: dict[int, float]) -> None:
    lines = draw_chart(History(9, 9, losses, {1: 1.5, 7: 1e3, 1000: 1.0}), 40, 12).splitlines()
    assert len(lines) == 12
    assert any(dots(line) for line in lines)


def printed(history: History, **console: object) -> str:
    file = io.StringIO() if "file" not in console else console.pop("file")
    print_end(history, Console(file=file, width=80, highlight=False, **console))  # type: ignore[arg-type]
    if isinstance(file, io.TextIOWrapper):
        file.seek(0)
        return file.read()
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def utf8() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def test_chart_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    on_terminal = printed(FALLING, file=utf8(), force_terminal=True)
    assert "step 1" in on_terminal
    assert "\x1b" not in on_terminal
    assert printed(FALLING) == ""
    assert printed(History(1, 1, {1: 1.0}, {}), file=utf8(), force_terminal=True) == ""
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    assert printed(FALLING, file=ascii_only, force_terminal=True) == ""
    monkeypatch.setenv("TERM", "dumb")
    assert printed(FALLING, file=utf8(), force_terminal=True) == ""


def test_early_stop_is_said_everywhere() -> None:
    said = printed(History(56, 150, {1: 1.0, 2: 0.5}, {24: 0.0612, 32: 0.0505, 56: 0.0584}, 32))
    assert said == "stopped early, after step 56 of 150: kept is step 32, eval_loss 0.0505\n"
