"""What is wrong with a training config, said before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from yi_tune.config import Config, placeholders
from yi_tune.data.dataset import NAMES
from yi_tune.errors import did_you_mean
from yi_tune.plan.early_stop import is_aligned
from yi_tune.plan.trackers import tracker_problems
from yi_tune.shapes import LINEAR

_AT_LEAST_1 = ("per_device_train_batch_size", "gradient_accumulation_steps", "cutoff_len", "lora_rank")
_ABOVE_0 = ("learning_rate", "num_train_epochs")
_NOT_BELOW_0 = ("val_size", "weight_decay", "warmup_steps", "lora_dropout", "max_grad_norm")


def is_trainable(names: Any) -> bool:
    """Whether a config's `dataset` names nothing but what yi-tune trains on."""
    return isinstance(names, str) and {name.strip() for name in names.split(",")} <= set(NAMES)


def problems(config: Config, known: dict[str, tuple[type, ...]], choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Everything that is wrong with a training config, so that it can be mended in one go.

    `known` maps each key LLaMA-Factory takes to the types of its values; an empty tuple allows any. `choices` has those
    that take one of a few words.
    """
    found = [f"{key}: no such key. {did_you_mean(key, sorted(known))}" for key in config if key not in known]
    found += [f"{key}: nothing fills {config[key]}." for key in placeholders(config)]
    for key, value in config.items():
        types = known.get(key)
        if types and not _fits(value, types):
            wanted = " or ".join(sorted({kind.__name__ for kind in types} - {"NoneType"}))
            found.append(f"{key}: {value!r} is a {type(value).__name__}; it takes {wanted}.")
        if key in choices and value is not None and value not in choices[key]:
            instead = did_you_mean(str(value), list(choices[key])) or f"Known: {', '.join(choices[key])}."
            found.append(f"{key}: there is no {value!r}. {instead}")

    def on(key: str) -> bool:
        return bool(config.get(key)) and config.get(key) != "no"

    quantized, full = on("quantization_bit"), config.get("finetuning_type") == "full"
    bits = config.get("quantization_bit")
    combinations = {
        "stage: only sft is yi-tune's trade.": config.get("stage") != "sft",
        "do_train: without it nothing is trained.": not on("do_train"),
        "dataset: `identity` stands for what yi-tune renders; name your own data with --data.": (
            not is_trainable(config.get("dataset"))
        ),
        "packing: rows would see each other; neat_packing keeps them apart.": (
            on("packing") and not on("neat_packing")
        ),
        "neat_packing: only own data (--data) is packed, not identity rows.": (
            on("neat_packing") and not on("tokenized_path")
        ),
        "neat_packing: a pack is a micro-batch of its own: per_device_train_batch_size=1.": (
            on("neat_packing") and config.get("per_device_train_batch_size", 8) != 1
        ),
        "template: the run chats in Yi's format, `yi`.": config.get("template") != "yi",
        "finetuning_type: yi-tune trains a LoRA adapter, `lora`, or every weight, `full`.": (
            config.get("finetuning_type") not in ("lora", "full")
        ),
        "quantization_bit with finetuning_type full: quantised weights cannot be trained.": full and quantized,
        "lora_* with finetuning_type full: it has no adapter.": (
            full and not on("adapter_name_or_path") and any(key.startswith("lora_") for key in config)
        ),
        "finetuning_type full with --from-run: it has no adapter that could start from another.": (
            full and on("adapter_name_or_path")
        ),
        "create_new_adapter: a run has one adapter.": on("create_new_adapter"),
        "bf16 and fp16: one of them at most.": on("bf16") and on("fp16"),
        "pure_bf16 on a CPU: bf16 is meant.": on("pure_bf16") and on("use_cpu"),
        "use_unsloth_gc needs a GPU.": on("use_unsloth_gc") and on("use_cpu"),
        "use_dora with quantization_bit: bitsandbytes refuses DoRA.": quantized and on("use_dora"),
        "pissa_init with quantization_bit: PiSSA needs unquantised weights.": quantized and on("pissa_init"),
        **{f"{key}: at least 1.": _number(config, key, 1) < 1 for key in _AT_LEAST_1},
        "quantization_bit: bitsandbytes takes 4 or 8.": (
            isinstance(bits, int) and bits not in (4, 8) and config.get("quantization_method", "bnb") == "bnb"
        ),
        **{f"{key}: above 0.": not _number(config, key, 1) > 0 for key in _ABOVE_0},
        **{f"{key}: 0 at the least.": _number(config, key, 0) < 0 for key in _NOT_BELOW_0},
        "warmup_ratio: a share, from 0 to 1.": not 0 <= _number(config, "warmup_ratio", 0) <= 1,
        **{f"lora_target: a layer has no {name!r}.": True for name in _unknown_targets(config)},
        "val_size: without it there is nothing for eval_strategy to evaluate; set eval_strategy=no too.": (
            on("eval_strategy") and not on("val_size")
        ),
        "early_stopping_steps needs load_best_model_at_end and metric_for_best_model.": (
            on("early_stopping_steps") and not (on("load_best_model_at_end") and on("metric_for_best_model"))
        ),
        "load_best_model_at_end: with eval_strategy=no nothing tells which was the best.": (
            on("load_best_model_at_end") and not on("eval_strategy") and config.get("save_strategy") != "best"
        ),
        "load_best_model_at_end: save_steps has to be a multiple of eval_steps, both in steps or both as shares.": (
            on("load_best_model_at_end") and on("eval_strategy") and not is_aligned(config)
        ),
        "save_only_model: a run could not be gone on with.": on("save_only_model"),
    }
    return found + [text for text, wrong in combinations.items() if wrong] + tracker_problems(config)


def _number(config: Config, key: str, default: float) -> float:
    """A number of the config; `default` for what is none, which is reported on its own."""
    value = config.get(key, default)
    return value if isinstance(value, int | float) else default


def _unknown_targets(config: Config) -> list[str]:
    """What `lora_target` names that no model of Yi's architecture has."""
    names = [name.strip() for name in str(config.get("lora_target", "all")).split(",")]
    return [name for name in names if name.rpartition(".")[2] not in ("all", *LINEAR, "lm_head", "embed_tokens")]


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (isinstance(value, int) and float in types)
