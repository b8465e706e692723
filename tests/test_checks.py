"""What is wrong with a config: said by LLaMA-Factory's argument classes, its parser, and the rules between them."""

from dataclasses import fields
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from tests.plans import plan
from yi_tune.cli import complete
from yi_tune.config import Config, dump_config, parse_config, shipped
from yi_tune.plan import checks
from yi_tune.plan.checks import problems, unfit_validation
from yi_tune.plan.plan import EARLY_STOP

TRAINING = [name for name, path in shipped().items() if path.parent.name == "train"]
# As few keys as a config can have.
FINE: Config = {
    "stage": "sft",
    "do_train": True,
    "dataset": "identity",
    "template": "yi",
    "finetuning_type": "lora",
    "model_name_or_path": "/models/nano",
    "output_dir": "saves/nano/identity",
    "use_cpu": True,
}
EVALUATED: Config = {"eval_strategy": "steps", "val_size": 0.1}


@pytest.mark.parametrize("name", TRAINING)
def test_nothing_is_wrong_with_shipped_configs(name: str) -> None:
    config = plan(name).config
    assert problems(config) == []
    wrong = config | {"learning_rate": "1e-3", "learning_rat": 1, "plot_loss": "yes"}
    assert {problem.split(":")[0] for problem in problems(wrong)} == {"learning_rate", "learning_rat", "plot_loss"}


@pytest.mark.parametrize("name", TRAINING)
def test_llamafactory_takes_them_as_they_are_meant(name: str) -> None:
    from llamafactory.hparams import get_infer_args, get_train_args

    planned = plan(name)
    # The parser splits lists, sets its own devices, and turns names into members of an enum.
    own = {"dataset", "lora_target", "adapter_name_or_path", "eval_strategy", "lr_scheduler_type", "infer_dtype"}
    for config, parse in ((planned.config, get_train_args), (planned.chat_config, get_infer_args)):
        written = parse_config(dump_config(config), "here")
        parsed = {key: value for group in parse(written) for key, value in vars(group).items()}
        for key, value in config.items():
            assert str(value) in str(parsed[key]).lower() if key in own else parsed[key] == value, key


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"learning_rate": 1},  # a whole number is a number
        {"bf16": True, "fp16": False, "quantization_bit": 4, "val_size": 0.1},
        {"quantization_bit": None, "use_dora": True, "max_samples": None},
        {"report_to": ["none"]},
        {"report_to": None},
        {"adapter_name_or_path": "/a", "create_new_adapter": False},
        {"lora_target": "q_proj,self_attn.v_proj,lm_head"},
        {"additional_target": "embed_tokens,lm_head, norm"},
        {"warmup_ratio": 0, "val_size": 0, "weight_decay": 0},
        {"optim": "sgd", "lr_scheduler_kwargs": {"a": 1}, **EVALUATED},
        {"early_stopping_steps": 3, "load_best_model_at_end": True, "metric_for_best_model": "loss"} | EVALUATED,
        EARLY_STOP | {"val_size": 0.1},
    ],
)
def test_nothing_is_wrong(config: Config) -> None:
    assert problems(FINE | config) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        # Keys, types, words and sizes.
        ({"learning_rat": 1e-3}, "learning_rat: no such key. Did you mean learning_rate?"),
        ({"zzzzzz": 1}, "zzzzzz: no such key."),
        ({"run_name": "${rate}", "cutoff_len": "${most}"}, "run_name: nothing fills ${rate}."),
        ({"learning_rate": "1e-3"}, "learning_rate: '1e-3' should be a valid number."),
        ({"cutoff_len": 512.0}, "cutoff_len: 512.0 should be a valid integer."),
        ({"bf16": 1}, "bf16: 1 should be a valid boolean."),
        ({"optim": "adamw_troch"}, "LLaMA-Factory: adamw_troch is not a valid OptimizerNames"),
        ({"eval_strategy": False}, "eval_strategy: False should be 'no', 'steps' or 'epoch'."),
        ({"cutoff_len": 0}, "cutoff_len: 0 should be greater than or equal to 1."),
        ({"num_train_epochs": 0}, "num_train_epochs: 0 should be greater than 0."),
        ({"learning_rate": -1}, "learning_rate: -1 should be greater than 0."),
        ({"warmup_ratio": 7}, "warmup_ratio: 7 should be less than or equal to 1."),
        # What LLaMA-Factory would take.
        ({"stage": "dpo"}, "stage: "),
        ({"do_train": False}, "do_train: "),
        ({"dataset": "alpaca"}, "dataset: "),
        ({"template": "qwen"}, "template: "),
        ({"finetuning_type": "full"}, "finetuning_type: yi-tune trains with lora only."),
        ({"create_new_adapter": True}, "create_new_adapter: "),
        ({"use_unsloth_gc": True}, "use_unsloth_gc needs a GPU"),
        ({"use_dora": True, "quantization_bit": 4}, "use_dora with quantization_bit"),
        ({"quantization_bit": 3}, "quantization_bit: bitsandbytes takes 4 or 8"),
        ({"early_stopping_steps": 3, "metric_for_best_model": "loss"}, "early_stopping_steps needs"),
        ({"early_stopping_steps": 3, "load_best_model_at_end": True} | EVALUATED, "early_stopping_steps needs"),
        ({"save_only_model": True}, "save_only_model: "),
        # Only training would have it, and not what asks the tuned model.
        ({"default_system": "You are 小易."}, "default_system: only training would have it."),
        ({"tool_format": "qwen"}, "tool_format: "),
        ({"add_tokens": "<x>"}, "add_tokens: an adapter goes with the base's own tokens."),
        ({"split_special_tokens": True}, "split_special_tokens: "),
        ({"rope_scaling": "linear"}, "rope_scaling: "),
        ({"do_predict": True}, "do_predict: "),
        ({"streaming": True, "max_steps": 3}, "streaming: "),
        ({"deepspeed": "ds.json"}, "deepspeed: --shard zero2 or --shard zero3 writes it."),
        ({"fsdp": "full_shard"}, "fsdp: --shard fsdp writes it."),
        ({"quantization_method": "hqq", "quantization_bit": 4}, "quantization_method: "),
        ({"additional_target": "lm_heads"}, "additional_target: a layer has no 'lm_heads'."),
        ({"optim": "galore_adamw"}, "optim: galore_adamw needs the package galore_torch"),
        ({"optim": "schedule_free_adamw"}, "optim: schedule_free_adamw needs the package schedulefree"),
        (
            {"mix_strategy": "interleave_over", "interleave_probs": "0.5,0.7"},
            "interleave_probs: they have to sum to 1.",
        ),
        ({"max_samples": 0}, "max_samples: 1 or more"),
        ({"lora_target": "q_proj, v_prj"}, "lora_target: a layer has no 'v_prj'"),
        ({"report_to": ["tensorbord"]}, "report_to: 'tensorbord' is not one of tensorboard, wandb, swanlab, mlflow."),
        ({"hub_token": "hunter2"}, "hub_token: a run folder keeps its config, and is no place for a secret."),
        ({"swanlab_api_key": "hunter2"}, "swanlab_api_key: a run folder"),
        # What it refuses itself.
        ({"bf16": True, "fp16": True}, "LLaMA-Factory: At most one of fp16 and bf16"),
        ({"eval_strategy": "steps"}, "LLaMA-Factory: Please make sure eval_dataset be provided or val_size"),
    ],
)
def test_something_is_wrong(config: Config, said: str) -> None:
    found = problems(FINE | config)
    assert len(found) == 1 or "${" in said
    assert found[0].startswith(said)
    assert "hunter2" not in found[0]


def test_all_problems_at_once() -> None:
    needed = {"stage", "do_train", "dataset", "template", "finetuning_type"}
    foreign = {key: value for key, value in FINE.items() if key not in needed}
    assert {text.split(":")[0] for text in problems(foreign)} == needed
    wrong = FINE | {"stage": "dpo", "learning_rat": 1, "cutoff_len": "x", "lora_rank": 0, "optim": 1, "bf16": "${x}"}
    assert {text.split(":")[0] for text in problems(wrong)} == wrong.keys() - FINE.keys() | {"stage"}


@pytest.mark.parametrize("config", [{"report_to": "wandb"}, {"report_to": ["wandb"]}])
def test_missing_package_of_a_tracker_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert problems(FINE | config) == ["report_to: wandb is not installed: pip install wandb"]
    assert problems(FINE | {"use_swanlab": True}) == ["report_to: swanlab is not installed: pip install swanlab"]
    monkeypatch.setattr(checks, "find_spec", lambda name: ModuleSpec(name, None))
    assert problems(FINE | config) == []


@pytest.mark.parametrize(
    ("config", "datasets", "said"),
    [
        ({"val_size": 0.1}, [398], ""),
        ({"val_size": 0.05}, [398], ""),  # 19.9 of which datasets makes 20
        ({"val_size": 20}, [21], ""),
        ({"val_size": 0.1}, [100, 100], ""),
        ({"val_size": 0.1}, [100], "val_size=0.1 holds back 10 of 100"),
        ({"val_size": 19}, [398], "val_size=19 holds back 19 of 398"),
        ({}, [398], "val_size=0 holds back 0 of 398"),
    ],
)
def test_enough_rows_to_stop_early_by(config: dict[str, Any], datasets: list[int], said: str) -> None:
    rows = dict(zip(("identity", "own"), datasets, strict=False))
    assert not list(unfit_validation(config, rows))
    found = list(unfit_validation(EARLY_STOP | config, rows))
    assert len(found) == bool(said)
    assert all(text.startswith(said) and text.endswith("--set val_size=20") for text in found)


def test_what_is_evaluated_on_has_to_be_there_and_rows_to_train_on() -> None:
    evaluated, few = {"eval_strategy": "epoch"}, {"identity": 99, "eval": 19}
    assert not list(unfit_validation({"eval_dataset": "eval"} | evaluated, few))
    assert not list(unfit_validation({"val_size": 9}, {"own": 10}))
    for config, rows, said in (
        ({"val_size": 10}, {"own": 10}, "val_size=10 holds back 10 of 10 rows: none is left to train on."),
        ({"eval_dataset": "own, theirs"} | evaluated, {"own": 9}, "eval_dataset: there is no 'theirs'. Name a file: "),
        ({"eval_dataset": "eval", "eval_strategy": "no"}, few, "eval_strategy: nothing would be evaluated. --set "),
        ({"eval_dataset": "eval"} | EARLY_STOP, few, "early_stopping_steps: the loss on fewer than 20 rows"),
    ):
        (found,) = unfit_validation(config, rows)
        assert found.startswith(said)


def test_completed_keys_are_those_of_a_config() -> None:
    from llamafactory import hparams

    groups = ("ModelArguments", "DataArguments", "TrainingArguments", "FinetuningArguments", "GeneratingArguments")
    known = {field.name for group in groups for field in fields(getattr(hparams, group)) if field.init}
    assert {key.removesuffix("=") for key in complete.config_keys()} == known
