"""What the user sees while a model is fetched, loads and trains: a live line on a terminal, plain lines elsewhere."""

import threading
import time
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal

from yi_tune.runs.history import smoothing

# Below this many columns the figures alone fill a line.
_WIDE = 110


class Progress:
    """A training run's progress on `console`; used as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        bar = [bars.BarColumn(bar_width=20)] if console.width >= _WIDE else []
        self._bar = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}"),
            *bar,
            bars.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._began = 0.0
        self._total = self._first = self._printed = 0
        self._weight = 0.0
        self._loss: float | None = None
        self._figures: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, what: str) -> None:
        """Say what is going on now, for which there is no telling how long it takes."""
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=None)
        if not self._console.is_terminal:
            self._console.print(f"{what} ...")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def start(self, total: int, done: int, losses: list[float], logs: int) -> None:
        """Training begins: `done` of `total` steps are behind it, which had these `losses`; in the end there will be
        as many as `logs`.
        """
        self._total, self._first, self._began = total, done, time.monotonic()
        self._weight = smoothing(logs)
        for loss in losses:
            self._smooth(loss)
        self._bar.reset(self._task, total=total, description="Training")
        self._bar.update(self._task, completed=done)

    def step(self, done: int) -> None:
        """A step has ended."""
        self._bar.update(self._task, completed=done)

    def log(self, loss: float, learning_rate: float, tokens_per_second: float | None, memory: int) -> None:
        """The training loss of the last steps, the learning rate, the speed since training began, and the memory
        in use, in bytes.
        """
        speed = {} if tokens_per_second is None else {"speed": f"{tokens_per_second:.0f} tok/s"}
        self._show(loss=f"loss {self._smooth(loss):.4f}", lr=f"lr {learning_rate:.1e}", **speed, memory=decimal(memory))

    def eval_loss(self, loss: float) -> None:
        """The loss on the validation rows."""
        self._show(eval_loss=f"eval {loss:.4f}")

    def _smooth(self, loss: float) -> float:
        # In steps what history.smooth() does to the whole.
        self._loss = loss if self._loss is None else self._weight * self._loss + (1 - self._weight) * loss
        return self._loss

    def _show(self, **figures: str) -> None:
        self._figures.update(figures)
        done = int(self._bar.tasks[0].completed)
        text = [f"step {done}/{self._total}", *self._figures.values()]
        self._bar.update(self._task, description=" ".join(text))
        # About ten plain lines a run; an evaluation gets one too, but not twice, as after the last step.
        due = done >= self._printed + self._total / 10 or ("eval_loss" in figures and done > self._printed)
        if not self._console.is_terminal and due:
            self._printed = done
            left = (time.monotonic() - self._began) / max(done - self._first, 1) * (self._total - done)
            self._console.print("  ".join((*text, f"{left:.0f} s left")), soft_wrap=True)


class Transfer:
    """The progress of files of `total` bytes together on `console`; used as a context manager, from any thread."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console, self._what, self._total = console, what, total
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=20),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(compact=True),
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total)
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._printed = 0.0
        self._first: int | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def at(self, name: str, done: int) -> None:
        """`done` bytes of the file `name` are here; fewer than before where it is begun anew."""
        with self._lock:
            self._done[name] = done
            done = sum(self._done.values())
            self._bar.update(self._task, completed=done)
            if self._first is None:
                # What an earlier call had fetched says nothing about the speed of this one.
                self._first, self._printed = done, done
            # About ten plain lines a download.
            if not self._console.is_terminal and done >= self._printed + self._total / 10:
                self._printed = done
                speed = (done - self._first) / max(time.monotonic() - self._began, 0.001)
                left = (self._total - done) / max(speed, 1)
                so_far = f"{decimal(done)} of {decimal(self._total)}"
                self.say(f"{self._what}: {so_far}, {decimal(int(speed))}/s, {left:.0f} s left")

    def say(self, text: str) -> None:
        """A line beside the bar."""
        self._console.print(text, markup=False, soft_wrap=True)
