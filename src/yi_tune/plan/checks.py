"""What is wrong with a training config, said before anything is loaded."""

import enum
import json
import math
import re
import traceback
import typing
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from annotated_types import Ge, Gt, Le

from yi_tune.config import Config, placeholders
from yi_tune.data.identity import NAMES
from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.models import LINEAR
from yi_tune.output import engine_output_to, log_folder
from yi_tune.plan import TRACKERS

# Limits of numbers that LLaMA-Factory's parser lets pass.
_LIMITS = {
    Ge(1): ("per_device_train_batch_size", "gradient_accumulation_steps", "cutoff_len", "lora_rank"),
    Gt(0): ("learning_rate", "num_train_epochs"),
    Ge(0): ("val_size", "weight_decay", "warmup_steps", "lora_dropout", "max_grad_norm", "warmup_ratio"),
    Le(1): ("warmup_ratio",),
}
_ON_GPU = ("enable_liger_kernel", "use_unsloth", "use_unsloth_gc")
_SECRET = ("_token", "_api_key", "_secret", "_webhook_url")
# With fewer, a single row is more than a twentieth of the eval loss, and chance says when to stop.
_MIN_ROWS = 20


def problems(config: Config) -> list[str]:
    """Everything that is wrong with a training config, so that it can be mended in one go.

    Where yi-tune finds nothing, LLaMA-Factory's own parser may find one thing more.
    """
    return [*_unfit(config), *_refused(config)] or _parse(config)


def _unfit(config: Config) -> Iterator[str]:
    """Unknown keys, and values of another type, word or size than LLaMA-Factory's argument classes say."""
    from llamafactory import hparams
    from pydantic import ConfigDict, ValidationError, create_model

    hints: dict[str, Any] = {}
    for name in ("ModelArguments", "DataArguments", "TrainingArguments", "FinetuningArguments", "GeneratingArguments"):
        group = getattr(hparams, name)
        types = typing.get_type_hints(group)
        hints |= {field.name: _one_of_words(types[field.name]) for field in fields(group) if field.init}
    for limit, keys in _LIMITS.items():
        hints |= {key: typing.Annotated[hints[key], limit] for key in keys}
    settings = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    arguments: dict[str, Any] = {key: (hint, None) for key, hint in hints.items()}
    model = create_model("Arguments", __config__=settings, **arguments)
    left_open = placeholders(config)
    yield from (f"{key}: nothing fills {config[key]}." for key in left_open)
    try:
        model.model_validate_json(json.dumps(config, default=str))
    except ValidationError as error:
        # A value that may be of several types is told of once.
        for key, found in {str(found["loc"][0]): found for found in reversed(error.errors())}.items():
            value, words = found["input"], re.findall(r"'([^']*)'", found.get("ctx", {}).get("expected", ""))
            if found["type"] == "extra_forbidden":
                yield f"{key}: no such key. {did_you_mean(key, sorted(hints))}"
            elif words:
                near = did_you_mean(str(value), words) or f"Known: {', '.join(words)}."
                yield f"{key}: there is no {value!r}. {near}"
            elif key not in left_open:
                yield f"{key}: {found['msg'].replace('Input', repr(value))}."


def _one_of_words(hint: Any) -> Any:
    """The type without `str` where it is beside an Enum, for how its words may be written too."""
    kinds = typing.get_args(hint)
    if any(isinstance(kind, type) and issubclass(kind, enum.Enum) for kind in kinds):
        return typing.Union[tuple(kind for kind in kinds if kind is not str)]  # noqa: UP007
    return hint


def _refused(config: Config) -> list[str]:
    """What LLaMA-Factory's parser lets pass, but fails later or is not yi-tune's trade."""

    def on(key: str) -> bool:
        return bool(config.get(key)) and config.get(key) != "no"

    targets = [name.strip() for name in str(config.get("lora_target", "all")).split(",")]
    layer = ("all", *LINEAR, "lm_head", "embed_tokens")
    bits, asked = config.get("quantization_bit"), config.get("report_to") or []
    trackers = [name for name in (asked if isinstance(asked, list) else [asked]) if name != "none"]
    trackers += ["swanlab"] if on("use_swanlab") else []
    refused = {
        "stage: yi-tune knows supervised fine-tuning only, `sft`.": config.get("stage") != "sft",
        "do_train: without it nothing is trained.": not on("do_train"),
        "dataset: `identity` stands for the rows that yi-tune renders; name your own data with --data.": (
            not is_trainable(config.get("dataset"))
        ),
        "packing: rows would see each other; neat_packing keeps them apart.": on("packing") and not on("neat_packing"),
        "neat_packing: only own data (--data) is packed, not identity rows.": (
            on("neat_packing") and not on("tokenized_path")
        ),
        "neat_packing with flash_attn=fa2: a pack is a micro-batch of its own, per_device_train_batch_size=1.": (
            on("neat_packing")
            and config.get("flash_attn") == "fa2"
            and config.get("per_device_train_batch_size", 8) != 1
        ),
        "neat_packing: LLaMA-Factory pads a pack to a multiple of 8, and needs such a cutoff_len.": (
            on("neat_packing") and isinstance(cutoff := config.get("cutoff_len", 2048), int) and cutoff % 8 != 0
        ),
        "template: the run chats in Yi's format, `yi`.": config.get("template") != "yi",
        "finetuning_type: yi-tune trains a LoRA adapter, `lora`.": config.get("finetuning_type") != "lora",
        "create_new_adapter: a run has one adapter.": on("create_new_adapter"),
        **{f"{key} needs a GPU.": on(key) and on("use_cpu") for key in _ON_GPU},
        "use_dora with quantization_bit: bitsandbytes refuses DoRA.": bool(bits) and on("use_dora"),
        "quantization_bit: bitsandbytes takes 4 or 8.": (
            isinstance(bits, int) and bits not in (4, 8) and config.get("quantization_method", "bnb") == "bnb"
        ),
        **{f"lora_target: a layer has no {name!r}.": name.rpartition(".")[2] not in layer for name in targets},
        "early_stopping_steps needs load_best_model_at_end and metric_for_best_model.": (
            on("early_stopping_steps") and not (on("load_best_model_at_end") and on("metric_for_best_model"))
        ),
        "save_only_model: an interrupted run could not go on.": on("save_only_model"),
        **{
            f"{key}: a run folder keeps its config, and is no place for a secret.": True
            for key in config
            if key.endswith(_SECRET)
        },
        **{f"report_to: {name!r} is not one of {', '.join(TRACKERS)}.": name not in TRACKERS for name in trackers},
        **{
            f"report_to: {name} is not installed: pip install {name}": name in TRACKERS and not find_spec(name)
            for name in trackers
        },
    }
    return [text for text, wrong in refused.items() if wrong]


def is_trainable(names: Any) -> bool:
    """Whether a config's `dataset` names nothing but data that yi-tune trains on."""
    return isinstance(names, str) and {name.strip() for name in names.split(",")} <= set(NAMES)


def _parse(config: Config) -> list[str]:
    """The first thing that LLaMA-Factory's own parser refuses, if any."""
    with engine_output_to(log_folder() / "plan.log"):
        from llamafactory.hparams import get_train_args

        try:
            get_train_args({**config, "overwrite_output_dir": True})
        except Exception as error:
            traceback.print_exc()
            return [f"LLaMA-Factory: {error}"]
    return []


def check_validation(config: Config, datasets: list[int]) -> None:
    """Raise YiTuneError when validation leaves none of the rows to train on, or early stopping has too few to go by.

    `datasets` has the number of rows of each.
    """
    if config.get("eval_dataset"):  # which is evaluated on whole
        return
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
