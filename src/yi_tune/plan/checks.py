"""What is wrong with a training config, said before anything is loaded."""

import json
import math
import traceback
import typing
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from gettext import gettext as _
from importlib.util import find_spec
from typing import Any

from annotated_types import Ge, Gt, Le

from yi_tune.config import Config
from yi_tune.data.identity import NAMES
from yi_tune.errors import did_you_mean
from yi_tune.language import english
from yi_tune.models import LINEAR, NORMS
from yi_tune.output import engine_output_to, log_folder

# Limits of numbers that LLaMA-Factory's parser lets pass.
_LIMITS = {
    Ge(1): ("per_device_train_batch_size", "gradient_accumulation_steps", "cutoff_len", "lora_rank"),
    Gt(0): ("learning_rate", "num_train_epochs"),
    Ge(0): ("val_size", "weight_decay", "warmup_steps", "lora_dropout", "max_grad_norm", "warmup_ratio"),
    Le(1): ("warmup_ratio",),
}
_ONLY = {"stage": "sft", "do_train": True, "template": "yi", "finetuning_type": "lora"}
_VOCABULARY = english("an adapter goes with the base's own tokens.")
_AS_IT_IS = english("chat, check and an export take the model as it is published.")
_NEVER = {
    "create_new_adapter": english("a run has one adapter."),
    "save_only_model": english("an interrupted run could not go on."),
    "do_predict": english("yi-tune check asks the tuned model."),
    "predict_with_generate": english("yi-tune check asks the tuned model."),
    "streaming": english("the rows are on this machine."),
    "deepspeed": english("--shard zero2 or --shard zero3 writes it."),
    **dict.fromkeys(("fsdp", "fsdp_config"), english("--shard fsdp writes it.")),
    # chat, check, serve and an export would ask in another format than that of training.
    "default_system": english("only training would have it. Write it into your rows, and chat with --system."),
    "tool_format": english("yi-tune trains on no tools."),
    **dict.fromkeys(("add_tokens", "add_special_tokens", "new_special_tokens_config", "resize_vocab"), _VOCABULARY),
    **dict.fromkeys(("split_special_tokens", "rope_scaling", "mixture_of_depths"), _AS_IT_IS),
}
_ON_GPU = ("enable_liger_kernel", "use_unsloth", "use_unsloth_gc")
_TRACKERS = ("tensorboard", "wandb", "swanlab", "mlflow")
_SECRET = ("_token", "_api_key", "_secret", "_webhook_url")
# The packages of optimisers that torch and bitsandbytes do not have, by how their names begin.
_OPTIMISERS = {"galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim", "adalomo": "lomo_optim"}
_OPTIMISERS |= {"grokadamw": "grokadamw", "schedule_free": "schedulefree", "stable_adamw": "optimi"}
# With fewer, a single row is more than a twentieth of the eval loss, and chance says when to stop.
_MIN_ROWS = 20


def problems(config: Config) -> list[str]:
    """Everything that is wrong with a training config; LLaMA-Factory's parser is asked where yi-tune finds nothing."""
    found = [*_unfit(config), *_refused(config)]
    if not found:
        with engine_output_to(log_folder() / "plan.log"):
            from llamafactory.hparams import get_train_args

            try:
                get_train_args({**config, "overwrite_output_dir": True})
            except Exception as error:
                traceback.print_exc()
                found = [_("LLaMA-Factory: {error}").format(error=error)]
    return found


def _unfit(config: Config) -> Iterator[str]:
    """Unknown keys, and values of another type, word or size than LLaMA-Factory's argument classes say."""
    from llamafactory import hparams
    from pydantic import ConfigDict, ValidationError, create_model

    hints: dict[str, Any] = {}
    for name in ("ModelArguments", "DataArguments", "TrainingArguments", "FinetuningArguments", "GeneratingArguments"):
        group = getattr(hparams, name)
        types = typing.get_type_hints(group)
        hints |= {field.name: types[field.name] for field in fields(group) if field.init}
    for limit, keys in _LIMITS.items():
        hints |= {key: typing.Annotated[hints[key], limit] for key in keys}
    settings = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    arguments: dict[str, Any] = {key: (hint, None) for key, hint in hints.items()}
    model = create_model("Arguments", __config__=settings, **arguments)
    left_open = [key for key, value in config.items() if "${" in str(value)]
    yield from (_("{key}: nothing fills {value}.").format(key=key, value=config[key]) for key in left_open)
    try:
        model.model_validate_json(json.dumps(config, default=str))
    except ValidationError as error:
        # A value that may be of several types is told of once.
        for key, found in {str(found["loc"][0]): found for found in reversed(error.errors())}.items():
            if found["type"] == "extra_forbidden":
                yield _("{key}: no such key. {known}").format(key=key, known=did_you_mean(key, sorted(hints)))
            elif key not in left_open:
                yield f"{key}: {found['msg'].replace('Input', repr(found['input']))}."


def _refused(config: Config) -> Iterator[str]:
    """What LLaMA-Factory's parser lets pass, but fails later or is not yi-tune's trade."""

    def on(key: str) -> bool:
        return bool(config.get(key)) and config.get(key) != "no"

    yield from (
        _("{key}: yi-tune trains with {value} only.").format(key=key, value=value)
        for key, value in _ONLY.items()
        if config.get(key) != value
    )
    yield from (f"{key}: {_(why)}" for key, why in _NEVER.items() if on(key))
    yield from (_("{key} needs a GPU.").format(key=key) for key in _ON_GPU if on(key) and on("use_cpu"))
    if not is_trainable(config.get("dataset")):
        yield _(
            "dataset: yi-tune lists the rows of --name and --data itself. Drop that line, or write: dataset: identity"
        )
    if on("packing") and not on("neat_packing"):
        yield _("packing: rows would see each other; neat_packing keeps them apart.")
    if on("neat_packing") and not on("tokenized_path"):
        yield _("neat_packing: only own data (--data) is packed, not identity rows.")
    if on("neat_packing") and isinstance(cutoff := config.get("cutoff_len", 2048), int) and cutoff % 8:
        yield _("neat_packing: LLaMA-Factory pads a pack to a multiple of 8, and needs such a cutoff_len.")
    if isinstance(most := config.get("max_samples"), int) and most < 1:
        yield _("max_samples: 1 or more, or null for all rows.")
    with suppress(ValueError, AttributeError):
        if (shares := config.get("interleave_probs")) and abs(sum(map(float, shares.split(","))) - 1) > 1e-6:
            yield _("interleave_probs: they have to sum to 1.")
    if (bits := config.get("quantization_bit")) and on("use_dora"):
        yield _("use_dora with quantization_bit: bitsandbytes refuses DoRA.")
    if isinstance(bits, int) and bits not in (4, 8):
        yield _("quantization_bit: bitsandbytes takes 4 or 8.")
    if config.get("quantization_method", "bnb") != "bnb":
        yield _("quantization_method: chat would load the base by bitsandbytes, bnb.")
    whole = (*LINEAR, "lm_head", "embed_tokens")
    for key, known in (("lora_target", ("all", *whole)), ("additional_target", (*whole, *NORMS))):
        for name in map(str.strip, str(config.get(key) or whole[0]).split(",")):
            if name.rpartition(".")[2] not in known:
                yield _("{key}: a layer has no {name!r}.").format(key=key, name=name)
    if on("early_stopping_steps") and not (on("load_best_model_at_end") and on("metric_for_best_model")):
        yield _("early_stopping_steps needs load_best_model_at_end and metric_for_best_model.")
    for key in config:
        if key.endswith(_SECRET):
            yield _("{key}: a run folder keeps its config, and is no place for a secret.").format(key=key)
    for name, package in _OPTIMISERS.items():
        if str(config.get("optim", "")).startswith(name) and not find_spec(package):
            yield _("optim: {optim} needs the package {package}, which is not installed.").format(
                optim=config["optim"], package=package
            )
    asked = config.get("report_to") or []
    for name in [*(asked if isinstance(asked, list) else [asked]), *(["swanlab"] if on("use_swanlab") else [])]:
        if name not in (*_TRACKERS, "none"):
            yield _("report_to: {name!r} is not one of {trackers}.").format(name=name, trackers=", ".join(_TRACKERS))
        elif name != "none" and not find_spec(name):
            yield _("report_to: {name} is not installed: pip install {name}").format(name=name)


def is_trainable(names: Any) -> bool:
    """Whether a config's `dataset` names nothing but data that yi-tune trains on."""
    return isinstance(names, str) and {name.strip() for name in names.split(",")} <= set(NAMES)


def unfit_validation(config: Config, rows: dict[str, int]) -> Iterator[str]:
    """What is wrong with the rows to evaluate on; `rows` has the number of them by dataset."""
    if evaluated := config.get("eval_dataset"):  # on the whole of it
        names = [name.strip() for name in str(evaluated).split(",")]
        unknown = [name for name in names if name not in rows]
        yield from (
            _("eval_dataset: there is no {name!r}. Name a file: --eval-data FILE").format(name=name) for name in unknown
        )
        if config.get("eval_strategy", "no") in (None, "no"):
            yield _("eval_strategy: nothing would be evaluated. --set eval_strategy=epoch")
        if config.get("early_stopping_steps") and sum(rows.get(name, 0) for name in names) < _MIN_ROWS:
            yield _("early_stopping_steps: the loss on fewer than {least} rows rises and falls by chance.").format(
                least=_MIN_ROWS
            )
        return
    trained = sum(rows.values())
    share = config.get("val_size") or 0
    # As datasets' train_test_split counts, which LLaMA-Factory calls.
    held_back = int(share) if share > 1 else math.ceil(share * trained)
    said = _("val_size={share:g} holds back {held_back} of {trained} rows").format(
        share=share, held_back=held_back, trained=trained
    )
    if held_back >= trained:
        yield _("{said}: none is left to train on. Hold none back: --set val_size=0 --set eval_strategy=no").format(
            said=said
        )
    elif config.get("early_stopping_steps") and held_back < _MIN_ROWS:
        yield _("{said}. The loss on fewer than {least} rows rises and falls by chance: --set val_size={least}").format(
            said=said, least=_MIN_ROWS
        )


def trackers(names: list[str], run: str) -> Config:
    """`--report-to`: the keys of a config that has `run` reported to these trackers."""
    others = [name for name in names if name != "swanlab"]
    # SwanLab by LLaMA-Factory's own callback: that of transformers 5 does not work with SwanLab 0.10 (seen).
    swanlab = {"use_swanlab": True, "swanlab_run_name": run} if "swanlab" in names else {}
    return swanlab | ({"report_to": others, "run_name": run} if others else {})
