"""One of the processes that train a run together, or ask a model. torchrun starts it, for yi_tune.launch."""

import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from select import select
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from yi_tune.config import Config, read_config
from yi_tune.engine import divergence
from yi_tune.engine.assistant import load_assistant
from yi_tune.engine.trainer import Reporter, fit
from yi_tune.errors import YiTuneError
from yi_tune.files import hold
from yi_tune.runs import ASKED, OUTCOME

# Seconds in which a process that is told to end by a signal may end by itself: one that waits for another that is gone
# never does. torchrun would kill it after 30.
_GRACE = 20


def main() -> None:
    """Train as train.yaml in the run folder (the first argument) says, from the checkpoint named by the second. Or make
    what is asked there.
    """
    folder = Path(sys.argv[1])
    checkpoint = folder / sys.argv[2] if len(sys.argv) > 2 else None
    # To resume, the Trainer has tensors put on "cpu:0", which torch knows as "cpu" alone.
    torch.serialization.register_package(0, lambda _: None, lambda kept, place: kept if place[:4] == "cpu:" else None)
    reporter = Reporter()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    # A signal wakes a thread: Python's own handlers wait for the main one, and that may wait for another process.
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_watch, args=(folder, reporter, woken), daemon=True).start()
    try:
        if (asked := folder / ASKED).exists():
            _answer(folder, *pickle.loads(asked.read_bytes()))  # noqa: S301 (the parent wrote it)
        else:
            config = read_config(folder / "train.yaml")
            if config.get("deepspeed") and config.get("use_cpu"):
                _begin_deepspeed()
            fit(config, checkpoint, reporter)
            return
    except KeyboardInterrupt:
        _leave(folder, {"kind": "stopped"})
    except Exception as error:
        traceback.print_exc()
        # Another process is gone: whatever ended that one is the reason, not this.
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            kind = "memory" if reporter.may_shrink(error) else "error"
            _leave(folder, {"kind": kind, "type": type(error).__name__, "message": str(error)})
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # without the end of a process, which may wait for the others
    dist.destroy_process_group()


def _answer(folder: Path, config: Config, function: str, arguments: tuple[Any, ...]) -> None:
    """Leave what launch.ask asks for. A process waits for the others as long as they live."""
    PartialState(timeout=timedelta(days=9))
    answer = getattr(divergence, function)(load_assistant(config), *arguments)
    _leave(folder, {"kind": "answer", "answer": answer})


def _begin_deepspeed() -> None:
    """What accelerate does for DeepSpeed on a GPU alone; without it, its ZeRO-3 believes to be one process."""
    import deepspeed

    # It would compile a communication of its own for CPUs, at run time; gloo is there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")


def _leave(folder: Path, outcome: dict[str, Any]) -> None:
    """Tell the parent how it ended; the first process to do so is believed."""
    with suppress(OSError), (folder / OUTCOME).open("x", encoding="utf-8") as file:
        json.dump(outcome, file)


def _watch(folder: Path, reporter: Reporter, woken: int) -> None:
    """Ask `reporter` to stop when the parent closes its end of stdin, or is gone; and when a signal comes, or torchrun
    is gone, but then end in any case.
    """
    torchrun, listening = os.getppid(), [0, woken]
    while os.getppid() == torchrun and woken not in (ready := select(listening, [], [], 1.0)[0]):
        if ready:
            _stop(reporter)
            listening = [woken]
            if os.environ.get("LOCAL_RANK", "0") == "0":
                threading.Thread(target=_keep, args=(folder,), daemon=True).start()
    if not reporter.asked:
        _stop(reporter)
        time.sleep(_GRACE)
    os._exit(1)


def _stop(reporter: Reporter) -> None:
    if reporter.model is None:  # nothing is trained yet
        os._exit(1)
    reporter.asked = True


def _keep(folder: Path) -> None:
    """Hold the run in the place of a parent that is gone, so that no other command works on it."""
    held = hold(folder / ".lock", YiTuneError(""), patience=-1)
    with held:
        threading.Event().wait()


if __name__ == "__main__":
    main()
