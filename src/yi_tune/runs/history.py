"""How a run went, step by step: read from what the Trainer and LLaMA-Factory wrote into its folder."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class History:
    """Where training stands: `step` of `steps`, and the losses by the step at which they were logged.

    `best` is the step of the best checkpoint, where training looks for one and has ended.
    """

    step: int
    steps: int
    losses: dict[int, float]
    eval_losses: dict[int, float]
    best: int | None = None

    @property
    def loss(self) -> float | None:
        """The training loss at the end, smoothed."""
        return smooth(list(self.losses.values()))[-1] if self.losses else None


def read_history(folder: Path) -> History | None:
    """The history of the run in `folder`; None before its first step.

    Until training has ended it is that of LLaMA-Factory's log, which begins anew with every resume.
    """
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        history = _history(state["global_step"], state["max_steps"], state["log_history"], "step")
        return replace(history, best=state.get("best_global_step"))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        text = (folder / "trainer_log.jsonl").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    logs = [log for line in text.splitlines() if (log := _parse(line))]
    if not logs:
        return None
    return _history(logs[-1]["current_steps"], logs[-1]["total_steps"], logs, "current_steps")


def _history(step: int, steps: int, logs: list[dict[str, Any]], key: str) -> History:
    # A loss that is no number, of a training that diverged, can neither be drawn nor written as JSON.
    losses, eval_losses = (
        {log[key]: log[name] for log in logs if math.isfinite(log.get(name, math.nan))}
        for name in ("loss", "eval_loss")
    )
    return History(step, steps, losses, eval_losses)


def _parse(line: str) -> dict[str, Any] | None:
    """A line of the log; None for one that a killed process left half."""
    try:
        log = json.loads(line)
    except ValueError:
        return None
    return log if isinstance(log, dict) and {"current_steps", "total_steps"} <= log.keys() else None


def smoothing(count: int) -> float:
    """The weight of the past in an exponential moving average over `count` losses.

    LLaMA-Factory's, of its loss plot (llamafactory/extras/ploting.py): 0 for none, 0.55 for 60, and up to 0.9.
    """
    return 1.8 * (1 / (1 + math.exp(-0.05 * count)) - 0.5)


def smooth(losses: list[float]) -> list[float]:
    """The losses as LLaMA-Factory's loss plot smooths them."""
    weight = smoothing(len(losses))
    smoothed: list[float] = []
    for loss in losses:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * loss if smoothed else loss)
    return smoothed
