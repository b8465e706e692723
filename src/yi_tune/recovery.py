"""Training that runs out of memory all the same goes on in smaller steps."""

from pathlib import Path
from typing import TYPE_CHECKING

from yi_tune.config import find_config, read_config
from yi_tune.errors import YiTuneError
from yi_tune.plan.memory import smaller
from yi_tune.plan.plan import TrainPlan
from yi_tune.progress import Progress
from yi_tune.runs.folder import newest_whole, write_configs

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant


def train_within_memory(
    planned: TrainPlan, checkpoint: Path | None, progress: Progress
) -> tuple["Assistant", float | None]:
    """Train as planned; out of memory, in half the micro-batch from the newest whole checkpoint on, and so on.

    The run folder is told of each change. Raises YiTuneError when there are no smaller steps, or the model alone is
    too much; else as engine.train.train does.
    """
    from yi_tune.engine.trainer import OutOfMemoryError, train

    chat = planned.chat_config(read_config(find_config("chat")))
    while True:
        try:
            return train(planned.config, checkpoint, progress)
        except OutOfMemoryError as error:
            changes = smaller(planned.config)
            if changes is None or not error.loaded:
                when = "with one row a step" if error.loaded else "while the model was loaded"
                raise YiTuneError(
                    f"Out of memory {when}: {error}",
                    "Free some (what else runs on this machine?), or take a shorter cutoff (--set cutoff_len=...) or a "
                    "smaller model (yi-tune models).",
                ) from None
        planned = planned.changed(changes, "memory ran out with more")
        write_configs(planned.run, planned.config, chat)
        checkpoint = newest_whole(planned.run.folder, progress.say)
        told = ", ".join(f"{key} {value}" for key, value in changes.items())
        progress.say(
            f"Out of memory. Going on {f'from {checkpoint.name}' if checkpoint else 'from the start'} with {told}."
        )
