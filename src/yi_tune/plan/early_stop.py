"""`--early-stop`: end training when the loss on the validation rows has stopped falling, and keep the best adapter."""

import math
from typing import Any

from yi_tune.config import Config
from yi_tune.errors import YiTuneError

# With fewer, a single row is more than a twentieth of the eval loss, and chance says when to stop.
_MIN_ROWS = 20

_WHY = "--early-stop"
_OFTEN = "--early-stop: twenty times a run, for it to stop before much is wasted"
SETTINGS: dict[str, tuple[Any, str]] = {
    "early_stopping_steps": (3, "--early-stop: after three evaluations that were no better than the best"),
    "metric_for_best_model": ("eval_loss", _WHY),
    "load_best_model_at_end": (True, "--early-stop: the adapter that is kept is the best, not the last"),
    "restore_callback_states_from_checkpoint": (True, "--early-stop: a resumed run knows how long it has waited"),
    "eval_strategy": ("steps", _WHY),
    "eval_steps": (0.05, _OFTEN),
    "save_strategy": ("steps", _WHY),
    "save_steps": (0.05, "--early-stop: what was evaluated has to be there to go back to"),
    "save_total_limit": (3, "--early-stop: the best, the newest, and one more in case that one is cut short"),
}


def check_validation(config: Config, datasets: list[int]) -> None:
    """Raise YiTuneError when of datasets of so many rows none is left to train on, or with early stopping too few are
    held back for evaluations to stop by.
    """
    rows = sum(min(rows, config.get("max_samples") or rows) for rows in datasets)
    share = config.get("val_size") or 0
    # As datasets' train_test_split counts, which LLaMA-Factory calls.
    held_back = int(share) if share > 1 else math.ceil(share * rows)
    if held_back >= rows:
        raise YiTuneError(
            f"val_size={share:g} holds back {held_back} of {rows} rows: none is left to train on.",
            "Hold fewer back: --set val_size=0.1",
        )
    if config.get("early_stopping_steps") and held_back < _MIN_ROWS:
        raise YiTuneError(
            f"--early-stop needs {_MIN_ROWS} validation rows, and val_size={share:g} holds back {held_back} of {rows}. "
            "The loss on fewer rises and falls by chance.",
            f"Hold more back, --set val_size={_MIN_ROWS}, or train without --early-stop.",
        )


def is_aligned(config: Config) -> bool:
    """Whether what is evaluated is also saved, as load_best_model_at_end needs: the Trainer's own rule
    (transformers/training_args.py, _validate_args).
    """
    save, evaluate = config.get("save_strategy", "steps"), config.get("eval_strategy", "no")
    if save == "best" or save != evaluate:
        return bool(save == "best")
    steps = config.get("save_steps", 500), config.get("eval_steps") or config.get("logging_steps", 500)
    if not all(isinstance(step, int | float) for step in steps):
        return True  # that is wrong in another way, and said
    # In millionths, for shares of the run: 0.3 is no multiple of 0.1 in floating point.
    saved, evaluated = (max(round(step * 1_000_000), 1) for step in steps)
    return bool(save != "steps" or (saved % evaluated == 0 and (steps[0] < 1) == (steps[1] < 1)))
