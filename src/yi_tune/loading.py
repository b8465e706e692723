"""From a run, or a model, to an assistant that answers."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from gettext import gettext as _
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.filesize import decimal

from yi_tune import launch
from yi_tune.config import Config, find_config, read_config
from yi_tune.data.heldout import Score
from yi_tune.data.identity import Identity
from yi_tune.errors import YiTuneError, is_out_of_memory
from yi_tune.hardware import Hardware, detect
from yi_tune.hubs.download import use_cached
from yi_tune.models import DEFAULT_MODEL, LocalModel, Model, find_model
from yi_tune.output import err
from yi_tune.plan.memory import answering
from yi_tune.progress import engine_at_work
from yi_tune.runs import Run, all_runs, find_run
from yi_tune.weights import check_model

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

_Made = TypeVar("_Made")


def find(workspace: Path, run: str | None, model: str | None) -> Run:
    """The newest finished run, of that name and of that model if given. Raises YiTuneError if there is none."""
    return find_run(workspace, run, find_model(model, workspace) if model is not None else None)


def run_config(run: Run) -> Config:
    """The run's chat.yaml, with its paths as they are today. Raises YiTuneError when the base is gone or broken."""
    return {**base_config(run), "adapter_name_or_path": str(run.folder)}


def base_config(run: Run) -> Config:
    """The config that loads the base of a run. Raises YiTuneError when that is gone or broken."""
    config, record = read_config(run.chat_yaml), run.record
    path = Path(record["model_path"])
    local = LocalModel(Model(record["model"], path.name), path)
    if not local.downloaded:  # the workspace may have been moved: run -> model -> saves -> workspace
        local = find_model(record["model"], run.folder.parents[2])
    config["model_name_or_path"] = _checked(local)
    if "" not in (now := local.weights_digest, record["weights"]) and now != record["weights"]:
        err.print(
            _("Note: {model} has other weights now than in this run's training: train anew, --fresh.").format(
                model=record["model"]
            )
        )
    config.pop("adapter_name_or_path", None)
    return config


def _checked(local: LocalModel) -> str:
    """The folder of a model that is here and whole, if need be by links to a hub's cache. Raises YiTuneError if not."""
    use_cached(local, err)
    check_model(local)
    return str(local.path)


def chat_config(workspace: Path, run: str | None, model: str | None, *, base: bool, both: bool = False) -> Config:
    """The config of a chat with the run found, or with `base` with that run's base; with `both` its adapter too.

    With `base` and no run asked for, that is `model`, or the default one where there is no finished run.
    Raises YiTuneError when there is no such run or model, or it is broken.
    """
    if not base or run or (model is None and any(known.finished for known in all_runs(workspace))):
        found = find(workspace, run, model)
        return base_config(found) if base and not both else run_config(found)
    local = find_model(DEFAULT_MODEL if model is None else model, workspace)
    config = read_config(find_config("chat")) | {"model_name_or_path": _checked(local)}
    del config["adapter_name_or_path"]
    return config | answering(local.shape, detect(), bits=4)  # as a run of it would answer


def load_run(run: Run) -> "Assistant":
    """Load a run, with its base in the same model. Raises YiTuneError when that fails."""
    return load(run_config(run))


def load(config: Config) -> "Assistant":
    """Load a model as `config` says, or as this machine can. Raises YiTuneError, with the log, when that fails."""
    return _as_it_fits(config, detect(), _load)


def check(run: Run, identity: Identity | None, hardware: Hardware) -> tuple[Score, dict[str, Any]]:
    """What engine.divergence.check measures of a run, on all GPUs of `hardware`. Raises YiTuneError as `load` does."""

    def at_work(stage: str) -> AbstractContextManager[object]:
        return engine_at_work("check.log", stage, _("The check failed"))

    def in_workers(config: Config) -> tuple[Score, dict[str, Any]]:
        with at_work(_("Asking base and tuned model in {count} workers").format(count=hardware.count)):
            scored, general = launch.ask(hardware, config, "check", identity)
            return scored, general

    if hardware.count > 1:
        return _as_it_fits(run_config(run), hardware, in_workers)
    assistant = _as_it_fits(run_config(run), hardware, _load)
    with at_work(_("Asking base and tuned model")):
        from yi_tune.engine import divergence

        return divergence.check(assistant, identity)


def _as_it_fits(config: Config, hardware: Hardware, load: Callable[[Config], _Made]) -> _Made:
    """What `load` makes of `config`, in a type that this machine computes in, and in 4 bits where memory does not hold
    16. A line says so, and one tells of a large model without a GPU.
    """
    local = find_model(config["model_name_or_path"], Path())
    if hardware.gpu is None and local.needs_gpu:
        err.print(
            _("Note: torch sees no CUDA GPU, and on the CPU {model} answers slowly.").format(model=local.path.name)
        )
    if config.get("infer_dtype") not in hardware.dtypes:
        config = config | {"infer_dtype": hardware.dtypes[0]}
    if "quantization_bit" in config:
        return load(config)
    note = _("Note: {free} of free memory do not hold {model} in 16 bits. It answers in 4.").format(
        free=decimal(hardware.free), model=local.path.name
    )
    if not (local.shape and "quantization_bit" in answering(local.shape, hardware, bits=4)):
        try:
            return load(config)
        except YiTuneError as error:
            if not (error.__cause__ and is_out_of_memory(error.__cause__)):
                raise
        gc.collect()  # the error is gone, but what it held refers to itself in circles
    err.print(note)
    return load(config | {"quantization_bit": 4})


def _load(config: Config) -> "Assistant":
    with engine_at_work("load.log", _("Loading the model"), _("The model does not load")):
        from yi_tune.engine.assistant import load_assistant

        return load_assistant(config)
