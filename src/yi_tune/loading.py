"""From a run, or a model, to an assistant that answers."""

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from yi_tune.config import Config, fill, find_config, read_config
from yi_tune.download import use_cached
from yi_tune.errors import YiTuneError
from yi_tune.hardware import detect
from yi_tune.models import DEFAULT_MODEL, LocalModel, Model, check_model, find_model
from yi_tune.output import engine_output_to, log_folder
from yi_tune.progress import Progress
from yi_tune.runs import Run, find_run, has_finished
from yi_tune.screen import err

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant


def find(workspace: Path, run: str | None, model: str | None) -> Run:
    """The newest finished run, of that name and of that model if given. Raises YiTuneError if there is none."""
    return find_run(workspace, run, find_model(model, workspace) if model is not None else None)


def run_config(run: Run) -> Config:
    """The run's chat.yaml, with its paths as they are today: a run folder may have been moved.

    Raises YiTuneError when the base model is gone or broken.
    """
    config = read_config(run.chat_yaml)
    record = run.record
    path = Path(record["model_path"])
    # run -> model -> saves -> workspace
    local = LocalModel(Model(record["model"], path.name), path)
    if not local.downloaded:
        local = find_model(record["model"], run.folder.parents[2])
        use_cached(local, err)
    check_model(local)
    if "" not in (now := local.weights_digest, record["weights"]) and now != record["weights"]:
        note = f"Note: {record['model']} has other weights now than when this run was trained: train it anew, --fresh."
        err.print(note, markup=False, soft_wrap=True)
    return {**config, "model_name_or_path": str(local.path), "adapter_name_or_path": str(run.folder)}


def chat_config(workspace: Path, run: str | None, model: str | None, *, base: bool, both: bool = False) -> Config:
    """What to load for a chat: the run found, and with `base` only that run's base, unless `both` are wanted.

    With `base` and no run asked for, that is `model`, or the default one where there is no finished run.
    Raises YiTuneError when there is no such run or model, or it is broken.
    """
    if not base or run or (model is None and has_finished(workspace)):
        config = run_config(find(workspace, run, model))
    else:
        local = find_model(DEFAULT_MODEL if model is None else model, workspace)
        use_cached(local, err)
        check_model(local)
        config = fill(read_config(find_config("chat")), {"model_path": str(local.path), "adapter_path": ""})
        # As training quantises it.
        config["quantization_bit"] = 4
        del config["adapter_name_or_path"]
    if base and not both:
        config.pop("adapter_name_or_path", None)
    return config


def load(config: Config) -> "Assistant":
    """Load the model, its engine's talk going to a log; a large one without a GPU is warned of.

    Raises YiTuneError with the log's path when that fails.
    """
    with err.status("Looking at the machine"):
        hardware = detect()
    local = find_model(config["model_name_or_path"], Path())
    if local.needs_gpu and hardware.gpu is None:
        note = f"Note: torch sees no CUDA GPU, and on the CPU {local.path.name} answers slowly."
        err.print(note, markup=False, soft_wrap=True)
    log = log_folder() / "load.log"
    log.unlink(missing_ok=True)
    with engine_output_to(log) as console, Progress(console) as progress:
        progress.stage("Loading the model")
        try:
            from yi_tune.engine.assistant import load_assistant

            return load_assistant(config)
        except YiTuneError:
            raise
        except Exception as error:
            traceback.print_exc()
            raise YiTuneError(f"The model does not load: {error}", f"The whole story is in {log}") from error
