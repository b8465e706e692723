"""How far a run is: a live line on a terminal, plain lines elsewhere."""

import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from gettext import gettext as _
from statistics import fmean

from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal

from yi_tune.errors import YiTuneError
from yi_tune.output import engine_output_to, log_folder, spell


class Progress(bars.Progress):
    """A training run's progress on `console`; used as a context manager."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}"),
            bars.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=600,  # in seconds, of which a step may take many
        )
        self._task = self.add_task("", total=None)
        self._before = self._printed = 0
        # How long training has taken in this process, and of how much of its steps.
        self.seconds, self.share = 0.0, 0.0
        self._losses: deque[float] = deque(maxlen=10)
        self._figures: dict[str, str] = {}

    def stage(self, what: str) -> None:
        """Name the work that begins now, of which nobody knows how long it takes."""
        self.remove_task(self._task)
        self._task = self.add_task(what, total=None)
        if not self.console.is_terminal:
            self.say(f"{what} ...")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def begin(self, total: int, done: int) -> None:
        """Training begins, with `done` of `total` steps behind it."""
        self._before = done
        self.reset(self._task, total=total, completed=done, description=_("Training"))

    def step(self, done: int) -> None:
        """A step has ended."""
        self.update(self._task, completed=done)
        training = self.tasks[0]
        self.seconds, self.share = training.elapsed or 0.0, (done - self._before) / (training.total or 1)

    def figures(self, logs: dict[str, float], memory: int = 0) -> None:
        """Show the Trainer's `logs`, the training loss as the mean of the last ten, and the memory in use, in bytes,
        where it is known.
        """
        if "loss" in logs:
            self._losses.append(logs["loss"])
            self._figures |= {"loss": f"loss {fmean(self._losses):.4f}", "lr": f"lr {logs['learning_rate']:.1e}"}
            if "train_tokens_per_second" in logs:
                self._figures["speed"] = _("{speed:.0f} tok/s").format(speed=logs["train_tokens_per_second"])
            if memory:
                self._figures["memory"] = decimal(memory)
        if "eval_loss" in logs:
            self._figures["eval_loss"] = f"eval {logs['eval_loss']:.4f}"
        done, total = int(self.tasks[0].completed), int(self.tasks[0].total or 0)
        text = [_("step {done}/{total}").format(done=done, total=total), *self._figures.values()]
        self.update(self._task, description=" ".join(text))
        # About ten plain lines a run, and one after the second step, which tells how long it takes; an evaluation gets
        # one too, but not twice, as after the last step.
        due = done >= self._printed + total / 10 or ("eval_loss" in logs and done > self._printed)
        due |= done == self._before + 2 > self._printed
        if not self.console.is_terminal and due:
            self._printed = done
            left = self.tasks[0].time_remaining
            self.say("  ".join([*text, *([] if left is None else [_("{left} left").format(left=spell(left))])]))


@contextmanager
def engine_at_work(log_name: str, stage: str, failure: str) -> Iterator[Progress]:
    """Shows progress while the engine's output goes to a log. What the engine raises is told as `failure`."""
    log = log_folder() / log_name
    log.unlink(missing_ok=True)
    with engine_output_to(log) as console, Progress(console) as progress:
        progress.stage(stage)
        try:
            yield progress
        except YiTuneError:
            raise
        except Exception as error:
            traceback.print_exc()
            raise YiTuneError(f"{failure}: {error}", _("The whole story is in {log}").format(log=log)) from error
