"""Run folders: `saves/<model>/<run>/` holds all that a resume, a later chat or check, or `train --from-run` needs."""

import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from gettext import gettext as _
from pathlib import Path
from typing import Any

from yi_tune import files
from yi_tune.config import Config, dump_config
from yi_tune.errors import YiTuneError
from yi_tune.language import english, told
from yi_tune.models import LocalModel, check_path, sha256, workspace_option
from yi_tune.weights import read_header

# Old runs did not record these.
_OLD = dict[str, Any](
    weights="", from_run=None, replay=0, gpus=1, sharding=None, created=None, versions={}, reasons={}, command=""
)
# Files of several processes: how they ended, by the first that tells, and what they are asked, where they do not train.
OUTCOME, ASKED = "outcome.json", "asked.pickle"
# LLaMA-Factory's keys that give an adapter its shape, and PEFT's. When it goes on with an adapter, LLaMA-Factory
# takes them from adapter_config.json, and ignores its own config.
_SHAPE = {"lora_rank": "r"} | {key: key for key in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")}
# adapter_config.json has these as the modules that they came to; here are their values where a config has none.
_MODULES = {"lora_target": "all", "additional_target": None}
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# The keys that say how a step is divided.
DIVISION = (*_BATCH, "per_device_eval_batch_size", "disable_gradient_checkpointing")
# The keys that say where a run lies.
PLACES = {"model_name_or_path", "adapter_name_or_path", "dataset_dir", "tokenized_path", "output_dir"}
# Keys that may change between two commands: those, where a run is reported, and how its steps are divided. Those of
# FSDP and ZeRO are said by "sharding".
_FREE = {*PLACES, *DIVISION, "report_to", "run_name", "use_swanlab", "swanlab_run_name", "save_on_each_node"}
_FREE |= {"flash_attn", "preprocessing_num_workers", "bf16", "fp16", "use_cpu", "fsdp", "fsdp_config", "deepspeed"}
_FREE.add("ray_num_workers")
# LLaMA-Factory's and transformers' keys that are on unless they are turned off.
_ON = {"double_quantization", "ignore_pad_token_for_loss", "average_tokens_across_devices", "use_fast_tokenizer"}


@dataclass
class Run:
    """A run folder, whether it is there or not."""

    folder: Path

    def __post_init__(self) -> None:
        self.name, self.data, self.log = self.folder.name, self.folder / "data", self.folder / "train.log"
        self.chat_yaml, self.report = self.folder / "chat.yaml", self.folder / "report.json"
        self.check, self.page = self.folder / "check.json", self.folder / "report.html"

    @property
    def finished(self) -> bool:
        """Whether training and its report came to their end: the report is written last."""
        return self.report.is_file()

    @property
    def running(self) -> bool:
        """Whether a process holds the run."""
        return files.is_held(self.folder / ".lock")

    @property
    def failure(self) -> str:
        """The error that ended the last training; empty if none did, or none could be written."""
        with suppress(OSError, ValueError):
            return told(json.loads((self.folder / "failure.json").read_text(encoding="utf-8")))
        return ""

    def record_failure(self, error: YiTuneError) -> None:
        """Keep the error that ended training, until the run goes on; on a full disk it may be lost."""
        with suppress(OSError):
            self.write("failure.json", json.dumps(error.text, ensure_ascii=False, default=str))

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json. Raises YiTuneError if it is broken."""
        try:
            content: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            needed = {key: content[key] for key in ("model", "model_path", "data", "config")}
            return _OLD | content | needed | {"identity": {**content["identity"]}}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise YiTuneError(
                "{folder} holds no readable run.json ({error}).",
                "Use another --run, or train it anew: --fresh",
                folder=self.folder,
                error=error,
            ) from None

    def write(self, file: str, content: str) -> None:
        """Write a text file of the run: all of it or none."""
        files.write_whole(self.folder / file, content)

    def lock(self) -> AbstractContextManager[object]:
        """Hold the run for this process. Raises YiTuneError when another holds it, or the folder cannot be written."""
        busy = _("Another process is working on the run {name!r}.").format(name=self.name)
        return files.hold(self.folder / ".lock", YiTuneError(busy, "Wait for it, or use another --run."))


def train_run(workspace: Path, local: LocalModel, name: str) -> Run:
    """The folder a run called `name` trains into; raises YiTuneError for a name or place that cannot be."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise YiTuneError("A run cannot be called {name!r}.", "Use letters, digits, '-', '_' and '.'.", name=name)
    folder = workspace / "saves" / local.model.folder / name
    for path in (folder, local.path):
        check_path(path)
    if set("[]*?") & set(str(folder)):
        raise YiTuneError(
            "The path {folder} has one of [ ] * ?, which `datasets` takes for a pattern.", "Rename it.", folder=folder
        )
    return Run(folder)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The differences between two run.json that change the training, as `key: old -> new`."""
    before, after = decided(old), decided(new)
    if not (before["weights"] and after["weights"]):  # unhashed weights count as the same
        before["weights"] = after["weights"]
    keys = {**before, **after}
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def decided(content: dict[str, Any], but: Collection[str] = _FREE) -> dict[str, Any]:
    """Everything in a run.json that decides the training, by name: all of the config `but` these keys."""
    config, start, data = content["config"], content["from_run"], content["data"]
    # Each process of ZeRO goes on from the file that it wrote; FSDP's checkpoints are whole.
    sharding = content.get("sharding")
    sharding = f"{sharding} on {content['gpus']} GPUs" if str(sharding).startswith("zero") else sharding
    given = {key: value for key, value in config.items() if value is not None and key not in but}
    return {
        **{key: content[key] for key in ("model", "weights", "replay")},
        "sharding": sharding,
        **({"from_run": f"{start['run']} ({start['adapter'][:12]})"} if start else {}),
        **({f"data {name}": file for name, file in data.items()} if isinstance(data, dict) else {"data": data}),
        **content["identity"],
        # A key that is off counts as one that is missing, unless it is on by itself.
        **{key: value for key, value in given.items() if value is not False or key in _ON},
        "effective batch": config.get(_BATCH[0], 8) * config.get(_BATCH[1], 1) * content.get("gpus", 1),
    }


def outdated(run: Run, new: dict[str, Any], *, fresh: bool) -> list[Path]:
    """What has to go from the (locked) folder before the run that `new` records is trained. Files of the same run stay;
    those of another go if it has trained nothing yet, or with `fresh`. Raises YiTuneError for any others.
    """
    # A process that was killed at its start leaves no more than run.json.part.
    content = [path for path in run.folder.iterdir() if path.name not in (".lock", "run.json.part")]
    if content and not (run.folder / "run.json").is_file():
        raise YiTuneError("{folder} is not empty and no run of yi-tune's.", "Use another --run.", folder=run.folder)
    if content and not fresh:
        changed = differences(run.record, new)
        if changed and any(path.name.startswith("checkpoint-") or path.suffix == ".safetensors" for path in content):
            raise YiTuneError(
                "The run {run!r} exists with other settings ({changed}).",
                "Train beside it with another --run NAME, or replace it with --fresh.",
                run=run.name,
                changed="; ".join(changed),
            )
        if run.finished:
            where = workspace_option(run.folder.parents[2])
            raise YiTuneError(
                "The run {run!r} is finished already, with these very settings.",
                "Talk to it: yi-tune chat --run {run}{where}   Or train it anew with --fresh.",
                run=run.name,
                where=where,
            )
        if not changed:
            # The error that the run goes on from, and what a process that was killed left half written.
            return [
                old for old in run.folder.iterdir() if {old.name, old.suffix} & {"failure.json", run.page.name, ".part"}
            ]
    return content


def prepare(run: Run, new: dict[str, Any], old: list[Path]) -> None:
    """Make the folder ready to train the run that `new` records, without the `old` files."""
    _delete(old)
    if not (run.folder / "run.json").is_file():
        run.write("run.json", json.dumps(new, ensure_ascii=False, indent=2))


def _delete(content: Iterable[Path]) -> None:
    # run.json last: until it goes, the folder is known to be a run, and the same command can delete the rest.
    for path in sorted(content, key=lambda path: path.name == "run.json"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove(run: Run) -> None:
    """Delete a run and its folder. Raises YiTuneError, and deletes nothing, while a process holds it."""
    with run.lock():
        _delete(path for path in run.folder.iterdir() if path.name != ".lock")
        (run.folder / ".lock").unlink(missing_ok=True)
    run.folder.rmdir()


def all_runs(workspace: Path) -> list[Run]:
    """The runs of a workspace, finished or not."""
    return [Run(file.parent) for file in sorted((workspace / "saves").glob("*/*/run.json"))]


def _called(workspace: Path, name: str | None, model: LocalModel | None) -> list[Run]:
    named = [run for run in all_runs(workspace) if name in (None, run.name, f"{run.folder.parent.name}/{run.name}")]
    return [run for run in named if model is None or run.folder.parent.name == model.model.folder]


def find_one(workspace: Path, name: str, model: LocalModel | None) -> Run:
    """The run called `name`, finished or not. Raises YiTuneError when there is none, or more than one."""
    found = _called(workspace, name, model)
    if len(found) > 1:
        message = _("{count} runs are called {name!r} in {folder}.").format(
            count=len(found), name=name, folder=workspace / "saves"
        )
        raise YiTuneError(message, "yi-tune runs lists the runs; --model MODEL or the name MODEL/RUN says which.")
    return found[0] if found else find_run(workspace, name, model)  # which says that there is none


def find_run(workspace: Path, name: str | None = None, model: LocalModel | None = None) -> Run:
    """The newest finished run, of those called `name` or tuned from `model` if given; YiTuneError if there is none."""
    found = _called(workspace, name, model)
    if finished := [run for run in found if run.finished]:
        return max(finished, key=lambda run: run.report.stat().st_mtime)
    if name and any(run.running for run in found):
        hint = english("Wait for it: yi-tune runs tells how far it is.")
        raise YiTuneError("The run {name!r} is training now.", hint, name=name)
    if name and found:
        hint = english("The command that started it goes on with it.")
        raise YiTuneError("The run {name!r} is not finished.", hint, name=name)
    folder, where = workspace / "saves" / (model.model.folder if model else ""), workspace_option(workspace)
    if name:
        hint = english("yi-tune runs{where} lists them. Train one: yi-tune train --name NAME --author AUTHOR{where}")
        raise YiTuneError("There is no run called {name!r} in {folder}.", hint, name=name, folder=folder, where=where)
    hint = english("Train one: yi-tune train --name NAME --author AUTHOR{where}")
    raise YiTuneError("There is no finished run in {folder}.", hint, folder=folder, where=where)


@dataclass(frozen=True)
class Start:
    """An adapter to start from: its run, folder and sha256, and its shape by the keys of the config."""

    run: str
    folder: Path
    adapter: str
    shape: Config


def find_start(workspace: Path, name: str, local: LocalModel, target: Run) -> Start:
    """The adapter of the finished run `name`, for the run `target` of the model `local` to start from; YiTuneError if
    there is none, it does not fit these weights, or `target` would replace it.
    """
    run = train_run(workspace, local, name)
    if run == target:
        raise YiTuneError(
            "The run {name!r} cannot start from itself: it would replace its own start.",
            "Train beside it, with another --run NAME.",
            name=name,
        )
    if not run.finished:
        run = find_run(workspace, name)  # of another model, or it raises
    record, weights = run.record, local.weights_digest
    same = weights == record["weights"] if weights and record["weights"] else record["model"] == local.model.name
    if not same:
        raise YiTuneError(
            "The run {name!r} was trained on other weights, {model}, than those in {path}.",
            "An adapter fits only its own weights: --model {model}, or train that run anew with --fresh.",
            name=name,
            model=record["model"],
            path=local.path,
        )
    file = run.folder / "adapter_model.safetensors"
    try:
        read_header(file)
        adapter = json.loads((run.folder / "adapter_config.json").read_text(encoding="utf-8"))
        shape = {key: adapter[theirs] for key, theirs in _SHAPE.items()}
        digest = sha256(file)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise YiTuneError(
            "The adapter in {folder} is missing or broken ({error}).",
            "Train that run anew first, with --fresh.",
            folder=run.folder,
            error=error,
        ) from None
    return Start(name, run.folder, digest, shape | {key: record["config"].get(key, _MODULES[key]) for key in _MODULES})


def write_configs(run: Run, new: dict[str, Any], chat: Config, environment: Mapping[str, str]) -> None:
    """Write train.yaml and chat.yaml, which llamafactory-cli takes as they are, the first in this `environment`. Of
    `new`, the content that run.json would have by now, it gets the config, the reasons for it, and the number of GPUs
    that train by it.
    """
    changed = {key: new[key] for key in ("config", "reasons", "gpus")}
    run.write("run.json", json.dumps(run.record | changed, ensure_ascii=False, indent=2))
    said = {"FORCE_TORCHRUN": 1, "NPROC_PER_NODE": new["gpus"], **environment} if new["gpus"] > 1 else {}
    several = "".join(f"{name}={value} " for name, value in said.items())
    run.write("train.yaml", f"# {several}llamafactory-cli train {run.folder}/train.yaml\n{dump_config(new['config'])}")
    run.write("chat.yaml", f"# llamafactory-cli chat {run.folder}/chat.yaml\n{dump_config(chat)}")
