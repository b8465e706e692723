from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from yi_tune.config import Config, find_config, read_config, reasons
from yi_tune.data.dataset import Dataset
from yi_tune.data.identity import Identity
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel, Model
from yi_tune.plan.adapters import Start
from yi_tune.plan.early_stop import SETTINGS, check_validation, is_aligned
from yi_tune.plan.memory import Fit, choose_fit
from yi_tune.plan.plan import TrainPlan, plan_train
from yi_tune.plan.problems import problems
from yi_tune.runs.folder import Run

CPU = Hardware(None, bf16=True, free=20_000_000_000)
OLD_CPU = Hardware(None, bf16=False, free=20_000_000_000)
H200 = Hardware("NVIDIA H200", bf16=True, free=140_000_000_000)
T4 = Hardware("Tesla T4", bf16=False, free=15_000_000_000)
RUN = Run(Path("/ws/saves/m/identity"))
MICRO = "per_device_train_batch_size"


def plan(
    template: str | Config = "qlora",
    overrides: Config | None = None,
    *,
    model: Model = CATALOGUE["nano"],
    hardware: Hardware = CPU,
    fit: Fit | None = None,
    start: Start | None = None,
    options: dict[str, tuple[Any, str]] | None = None,
) -> TrainPlan:
    """The plan for a shipped config, or one given."""
    why = {}
    if isinstance(template, str):
        path = find_config(template)
        template, why = read_config(path), reasons(path)
    return plan_train(
        template,
        why,
        overrides or {},
        local=LocalModel(model, Path("/models/m")),
        identity=Identity("小易", "李雷"),
        datasets=(Dataset("identity", 398, ""),),
        fit=fit or Fit(8, 1, False, hardware),
        run=RUN,
        start=start,
        options=options,
    )


def provenance(planned: TrainPlan, key: str) -> tuple[Any, str, str]:
    setting = next(setting for setting in planned.settings if setting.key == key)
    return setting.value, setting.source, setting.why


def test_shorter_rows_change_what_was_left_to_the_machine() -> None:
    qlora = read_config(find_config("qlora"))
    six = CATALOGUE["yi-1.5-6b-chat"].shape
    fit = choose_fit(six, qlora, 1024, replace(T4, free=16_000_000_000))
    planned = plan(fit=fit)
    assert (planned.config["per_device_train_batch_size"], planned.config["gradient_accumulation_steps"]) == (4, 2)
    shorter = planned.fitted(72)
    assert provenance(shorter, "per_device_train_batch_size") == (8, "hardware", "the longest row has 72 tokens")
    assert provenance(shorter, "gradient_accumulation_steps")[0] == 1
    assert shorter.fit == fit.for_rows_of(72)
    assert planned.fitted(1024).settings == planned.settings
    # What the user, the tutorial's config or packing decided stays.
    assert plan(overrides={"per_device_train_batch_size": 2}, fit=fit).fitted(72).config[MICRO] == 2
    assert plan("tutorial", fit=fit).fitted(72).config[MICRO] == 1


def test_every_value_knows_where_it_came_from() -> None:
    planned = plan(overrides={"lora_rank": 16})
    assert provenance(planned, "model_name_or_path") == ("/models/m", "model", "where nano lies")
    assert provenance(planned, "dataset_dir") == (str(RUN.data), "data", "398 rows rendered for 小易")
    assert provenance(planned, "output_dir") == (str(RUN.folder), "run", "the run folder")
    assert provenance(planned, "learning_rate") == (2e-3, "model", "nano's own")
    assert provenance(planned, "num_train_epochs") == (CATALOGUE["nano"].num_train_epochs, "model", "nano's own")
    assert provenance(planned, "disable_gradient_checkpointing") == (True, "hardware", "memory suffices without")
    assert provenance(planned, "bf16") == (True, "hardware", "the CPU has bf16")
    assert provenance(planned, "fp16") == (False, "hardware", "not beside bf16")
    assert provenance(planned, "use_cpu") == (True, "hardware", "training is on the CPU")
    assert provenance(planned, "lora_rank") == (16, "flag", "--set")
    assert provenance(planned, "cutoff_len") == (1024, "template", "")
    value, source, why = provenance(planned, "save_steps")
    assert (value, source) == (0.25, "template")
    assert "500" in why
    assert len({setting.key for setting in planned.settings}) == len(planned.settings)


def test_departures_are_what_is_not_simply_the_tutorials() -> None:
    planned = plan(overrides={"lora_rank": 16, "cutoff_len": 512})
    departures = {setting.key for setting in planned.departures}
    assert {"learning_rate", "bf16", "save_steps", "lora_rank", "cutoff_len", "output_dir"} <= departures
    assert not departures & {"stage", "template", "lora_target", "quantization_bit"}


@pytest.mark.parametrize("hardware", [CPU, H200, T4], ids=lambda hardware: hardware.device)
@pytest.mark.parametrize("model", [CATALOGUE["nano"], CATALOGUE["yi-1.5-6b-chat"]], ids=lambda model: model.name)
def test_tutorial_is_unaltered_on_any_machine(hardware: Hardware, model: Model) -> None:
    planned = plan("tutorial", hardware=hardware, model=model)
    assert planned.config == read_config(find_config("tutorial")) | {
        "model_name_or_path": "/models/m",
        "dataset_dir": str(RUN.data),
        "output_dir": str(RUN.folder),
    }
    assert {setting.key for setting in planned.departures} == {"model_name_or_path", "dataset_dir", "output_dir"}


@pytest.mark.parametrize(
    ("hardware", "bf16", "fp16", "use_cpu"),
    [(CPU, True, False, True), (OLD_CPU, False, False, True), (H200, True, False, False), (T4, False, True, False)],
)
def test_precision_is_the_machines(hardware: Hardware, bf16: bool, fp16: bool, use_cpu: bool) -> None:
    config = plan(hardware=hardware).config
    assert (config["bf16"], config["fp16"], config["use_cpu"]) == (bf16, fp16, use_cpu)
    assert hardware.device in provenance(plan(hardware=hardware), "use_cpu")[2]
    assert ("has bf16" in provenance(plan(hardware=hardware), "bf16")[2]) == bf16


def test_steps_are_divided_as_they_fit() -> None:
    planned = plan(fit=Fit(2, 4, True, T4))
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size")
    assert [planned.config[key] for key in keys] == [2, 4, 2]
    assert planned.config["disable_gradient_checkpointing"] is False
    assert {provenance(planned, key)[1] for key in (*keys, "disable_gradient_checkpointing")} == {"hardware"}
    # A user's micro-batch stands; the machine's accumulation goes with it.
    assert plan(overrides={keys[0]: 4}, fit=Fit(4, 2, False, T4)).config[keys[1]] == 2


def test_values_that_the_machine_made_necessary() -> None:
    planned = plan(overrides={"per_device_train_batch_size": 8})
    changed = planned.changed({"per_device_train_batch_size": 4, "extra": 1}, "memory ran out with more")
    assert provenance(changed, "per_device_train_batch_size") == (4, "hardware", "memory ran out with more")
    assert changed.config == planned.config | {"per_device_train_batch_size": 4, "extra": 1}


def test_yi_has_the_tutorials_values() -> None:
    config = plan(model=CATALOGUE["yi-1.5-6b-chat"], hardware=H200).config
    assert (config["learning_rate"], config["num_train_epochs"]) == (1e-4, 3.0)


def test_flag_wins_over_template_model_and_hardware() -> None:
    flags = {"cutoff_len": 256, "learning_rate": 1e-5, "bf16": False, "run_name": None}
    planned = plan(overrides=flags)
    assert {key: planned.config[key] for key in flags} == flags
    assert {provenance(planned, key)[1:] for key in flags} == {("flag", "--set")}


def test_placeholder_that_nothing_fills() -> None:
    planned = plan({"rate": "${my_rate}"})
    found = problems(planned.config, {}, {})
    # With all else that is wrong.
    assert "rate: nothing fills ${my_rate}." in found
    assert any(problem.startswith("rate: no such key") for problem in found)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model_name_or_path", "--model"),
        ("output_dir", "--run"),
        ("adapter_name_or_path", "--from-run"),
        ("dataset_dir", "--name, --data"),
        ("dataset", "--no-identity"),
        ("resume_from_checkpoint", "resumes"),
    ],
)
def test_what_yi_tune_decides_cannot_be_set(key: str, meant: str) -> None:
    with pytest.raises(YiTuneError, match=f"--set cannot change {key} ") as caught:
        plan(overrides={key: "x", "cutoff_len": 1})
    assert meant in caught.value.message
    assert "cutoff_len" not in caught.value.message


def test_all_that_cannot_be_set_is_named_at_once() -> None:
    with pytest.raises(YiTuneError) as caught:
        plan(overrides={"output_dir": "x", "model_name_or_path": "y"})
    assert "output_dir (" in caught.value.message
    assert "model_name_or_path (" in caught.value.message


def test_paths_of_a_config_written_for_llamafactory_are_replaced() -> None:
    planned = plan({"model_name_or_path": "01-ai/Yi-1.5-6B-Chat", "output_dir": "saves/old", "learning_rate": 5e-5})
    assert planned.config == {
        "model_name_or_path": "/models/m",
        "output_dir": str(RUN.folder),
        "learning_rate": 5e-5,
        "dataset_dir": str(RUN.data),
    }
    assert provenance(planned, "learning_rate") == (5e-5, "template", "")
    assert provenance(planned, "model_name_or_path")[1] == "model"


def test_placeholder_within_a_text() -> None:
    planned = plan({"run_name": "lr-${learning_rate}"})
    assert provenance(planned, "run_name") == ("lr-0.002", "model", "nano's own")


CHAT = read_config(find_config("chat"))


@pytest.mark.parametrize(
    ("hardware", "overrides", "added"),
    [
        (CPU, {}, {"quantization_bit": 4, "infer_dtype": "bfloat16"}),
        (T4, {}, {"quantization_bit": 4, "infer_dtype": "float16"}),
        (H200, {"quantization_bit": 8}, {"quantization_bit": 8, "infer_dtype": "bfloat16"}),
        (H200, {"quantization_bit": None}, {"infer_dtype": "bfloat16"}),
        (OLD_CPU, {}, {"quantization_bit": 4}),
        (OLD_CPU, {"quantization_bit": None}, {"infer_dtype": "float32"}),
    ],
)
def test_chat_config_loads_what_was_trained(hardware: Hardware, overrides: Config, added: Config) -> None:
    assert plan(overrides=overrides, hardware=hardware).chat_config(CHAT) == {
        "model_name_or_path": "/models/m",
        "adapter_name_or_path": str(RUN.folder),
        "template": "yi",
        "finetuning_type": "lora",
        **added,
    }
    assert CHAT["model_name_or_path"] == "${model_path}"


def test_chat_config_quantises_only_what_memory_does_not_hold() -> None:
    for free, bits in ((10, 4), (24, None)):
        fit = choose_fit(CATALOGUE["yi-1.5-6b-chat"].shape, {}, 72, replace(T4, free=free * 10**9))
        assert plan(fit=fit).config["quantization_bit"] == 4
        assert plan(fit=fit).chat_config(CHAT).get("quantization_bit") == bits
        assert plan(fit=fit).base_config(CHAT).get("quantization_bit") == bits


def test_chat_config_of_a_full_fine_tuning_loads_the_run_itself() -> None:
    assert plan("full").chat_config(CHAT) == {
        "model_name_or_path": str(RUN.folder),
        "template": "yi",
        "finetuning_type": "full",
        "infer_dtype": "bfloat16",
    }


@pytest.mark.parametrize("template", ["qlora", "full"])
def test_base_config_loads_the_model_as_it_was(template: str) -> None:
    planned = plan(template)
    changed = {"model_name_or_path": "/models/m"}
    rest = {key: value for key, value in planned.chat_config(CHAT).items() if key != "adapter_name_or_path"}
    assert planned.base_config(CHAT) == rest | changed


START = Start(
    "first",
    Path("/ws/saves/m/first"),
    "0" * 64,
    {"lora_rank": 16, "use_rslora": True, "lora_target": "all", "additional_target": None},
)


def test_start_is_where_the_adapter_lies_and_keeps_its_shape() -> None:
    planned = plan(start=START)
    assert provenance(planned, "adapter_name_or_path") == (
        "/ws/saves/m/first",
        "run",
        "where the adapter of the run first lies",
    )
    assert provenance(planned, "lora_rank") == (16, "run", "the adapter of the run first has it")
    assert planned.config["use_rslora"] is True
    assert "additional_target" not in planned.config
    # It is trained further, and the run keeps its own.
    assert planned.chat_config(CHAT)["adapter_name_or_path"] == str(RUN.folder)
    assert "adapter_name_or_path" not in plan().config


def test_shape_that_is_said_again_is_no_clash() -> None:
    assert plan(start=START, overrides={"lora_rank": 16}).config["lora_rank"] == 16


def test_another_shape_than_the_adapters_is_refused() -> None:
    with pytest.raises(YiTuneError) as caught:
        plan({"lora_rank": 16, "use_rslora": False}, {"lora_rank": 8, "additional_target": "embed_tokens"}, start=START)
    for clash in ("lora_rank: 8, where", "use_rslora: False, where", "additional_target: embed_tokens, where"):
        assert clash in caught.value.message
    assert "lora_target" not in caught.value.message


def test_adapter_that_a_config_names_itself_is_refused() -> None:
    config = {"adapter_name_or_path": "saves/old", "learning_rate": 5e-5}
    with pytest.raises(YiTuneError, match="saves/old") as caught:
        plan(config)
    assert "--from-run" in caught.value.hint
    assert plan(config, start=START).config["adapter_name_or_path"] == str(START.folder)


# A small part of what LLaMA-Factory knows.
KNOWN: dict[str, tuple[type, ...]] = {
    "stage": (str,),
    "do_train": (bool,),
    "dataset": (str, type(None)),
    "template": (str, type(None)),
    "finetuning_type": (str,),
    "learning_rate": (float,),
    "num_train_epochs": (float,),
    "cutoff_len": (int,),
    "lora_rank": (int,),
    "adapter_name_or_path": (str, type(None)),
    "create_new_adapter": (bool,),
    "val_size": (float,),
    "report_to": (),
    "metric_for_best_model": (str, type(None)),
    "early_stopping_steps": (int, type(None)),
    "quantization_bit": (int, type(None)),
    **dict.fromkeys(("bf16", "fp16", "pure_bf16", "use_cpu", "use_dora", "pissa_init", "use_unsloth_gc"), (bool,)),
    "load_best_model_at_end": (bool,),
    "eval_strategy": (),
    "save_steps": (float,),
    "save_only_model": (bool,),
    "hub_token": (str, type(None)),
    **dict.fromkeys(("optim", "lora_target", "warmup_ratio", "weight_decay"), ()),
}
# Evaluated as often as it is saved by default, every 500 steps.
EVALUATED: Config = {"eval_strategy": "steps", "val_size": 0.1}
FINE: Config = {"stage": "sft", "do_train": True, "dataset": "identity", "template": "yi", "finetuning_type": "lora"}


def test_nothing_wrong() -> None:
    assert problems(FINE, KNOWN, {}) == []
    assert problems(FINE | {"bf16": True, "fp16": False, "quantization_bit": 4, "val_size": 0.1}, KNOWN, {}) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 1e-3),
        ("learning_rate", 1),  # a whole number is a number
        ("cutoff_len", 512),
        ("bf16", True),
        ("quantization_bit", None),
        ("report_to", ["none"]),
        ("report_to", "none"),
        ("report_to", None),
    ],
)
def test_right_types(key: str, value: Any) -> None:
    assert problems(FINE | {key: value}, KNOWN, {}) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learning_rate", "1e-3", "'1e-3' is a str; it takes float."),
        ("learning_rate", True, "True is a bool; it takes float."),
        ("cutoff_len", True, "True is a bool; it takes int."),
        ("cutoff_len", 512.0, "512.0 is a float; it takes int."),
        ("cutoff_len", "512", "'512' is a str; it takes int."),
        ("bf16", 1, "1 is a int; it takes bool."),
        ("bf16", "yes", "'yes' is a str; it takes bool."),
        ("quantization_bit", "4", "'4' is a str; it takes int."),
        ("metric_for_best_model", 3, "3 is a int; it takes str."),
        ("cutoff_len", [1], "[1] is a list; it takes int."),
        ("cutoff_len", None, "None is a NoneType; it takes int."),
        ("learning_rate", None, "None is a NoneType; it takes float."),
        ("bf16", None, "None is a NoneType; it takes bool."),
    ],
)
def test_wrong_types(key: str, value: Any, said: str) -> None:
    assert problems(FINE | {key: value}, KNOWN, {}) == [f"{key}: {said}"]


def test_mistyped_word() -> None:
    words = {"optim": ("adamw_torch", "adamw_8bit", "sgd")}
    assert problems(FINE | {"optim": "sgd"}, KNOWN, words) == []
    assert problems(FINE | {"optim": "adamw_troch"}, KNOWN, words) == [
        "optim: there is no 'adamw_troch'. Did you mean adamw_torch?"
    ]
    assert problems(FINE | {"optim": "banana"}, KNOWN, words) == [
        "optim: there is no 'banana'. Known: adamw_torch, adamw_8bit, sgd."
    ]


def test_mistyped_key() -> None:
    assert problems(FINE | {"learning_rat": 1e-3}, KNOWN, {}) == [
        "learning_rat: no such key. Did you mean learning_rate?"
    ]


def test_unknown_key_far_from_any_lists_few_keys_only() -> None:
    few, many = dict.fromkeys(FINE, ()), KNOWN
    assert len(few) <= 20 < len(many)
    (said,) = problems(FINE | {"zzzzzz": 1}, dict(few), {})
    assert said == f"zzzzzz: no such key. Known: {', '.join(sorted(few))}."
    (said,) = problems(FINE | {"zzzzzz": 1}, many, {})
    assert said.strip() == "zzzzzz: no such key."


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"stage": "dpo"}, "stage: "),
        ({"do_train": False}, "do_train: "),
        ({"dataset": "alpaca"}, "dataset: "),
        ({"template": "qwen"}, "template: "),
        ({"finetuning_type": "freeze"}, "finetuning_type: "),
        ({"finetuning_type": "full", "quantization_bit": 4}, "quantization_bit with finetuning_type full"),
        ({"finetuning_type": "full", "lora_rank": 8}, "lora_* with finetuning_type full"),
        ({"finetuning_type": "full", "adapter_name_or_path": "/a"}, "finetuning_type full with --from-run"),
        ({"create_new_adapter": True}, "create_new_adapter: "),
        ({"bf16": True, "fp16": True}, "bf16 and fp16"),
        ({"pure_bf16": True, "use_cpu": True}, "pure_bf16 on a CPU"),
        ({"use_unsloth_gc": True, "use_cpu": True}, "use_unsloth_gc needs a GPU"),
        ({"use_dora": True, "quantization_bit": 4}, "use_dora with quantization_bit"),
        ({"pissa_init": True, "quantization_bit": 8}, "pissa_init with quantization_bit"),
        ({"eval_strategy": "steps"}, "val_size: "),
        ({"eval_strategy": "epoch", "val_size": 0.0}, "val_size: "),
        ({"early_stopping_steps": 3}, "early_stopping_steps needs"),
        ({"early_stopping_steps": 3, "load_best_model_at_end": True} | EVALUATED, "early_stopping_steps needs"),
        ({"early_stopping_steps": 3, "metric_for_best_model": "loss"}, "early_stopping_steps needs"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: "),
        ({"load_best_model_at_end": True, "save_steps": 0.5} | EVALUATED, "load_best_model_at_end: "),
        ({"save_only_model": True}, "save_only_model: "),
        ({"report_to": ["tensorbord"]}, "report_to: 'tensorbord' is not one of"),
        ({"hub_token": "hf_x"}, "hub_token: "),
        ({"cutoff_len": 0}, "cutoff_len: at least 1"),
        ({"lora_rank": 0}, "lora_rank: at least 1"),
        ({"quantization_bit": 3}, "quantization_bit: bitsandbytes takes 4 or 8"),
        ({"num_train_epochs": 0}, "num_train_epochs: above 0"),
        ({"num_train_epochs": -0.5}, "num_train_epochs: above 0"),
        ({"learning_rate": 0.0}, "learning_rate: above 0"),
        ({"learning_rate": -1}, "learning_rate: above 0"),
        ({"warmup_ratio": 7}, "warmup_ratio: a share"),
        ({"val_size": -1}, "val_size: 0 at the least"),
        ({"lora_target": "foo"}, "lora_target: a layer has no 'foo'"),
        ({"lora_target": "q_proj, v_prj"}, "lora_target: a layer has no 'v_prj'"),
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, "load_best_model_at_end: with eval_strategy=no"),
    ],
)
def test_refused_combination(config: Config, said: str) -> None:
    found = problems(FINE | config, KNOWN, {})
    assert len(found) == 1
    assert found[0].startswith(said)


@pytest.mark.parametrize(
    "config",
    [
        {"pure_bf16": True, "use_cpu": False},
        {"finetuning_type": "full", "quantization_bit": None},
        {"adapter_name_or_path": "/a", "create_new_adapter": False},
        {"use_dora": True, "quantization_bit": None},
        {"use_dora": False, "quantization_bit": 4},
        {"pissa_init": True},
        {"use_unsloth_gc": True},
        {"eval_strategy": "no"},
        {"lora_target": "q_proj,self_attn.v_proj,lm_head"},
        {"warmup_ratio": 0, "val_size": 0, "weight_decay": 0},
        {"eval_strategy": "steps", "val_size": 0.1},
        {"early_stopping_steps": 3, "load_best_model_at_end": True, "metric_for_best_model": "loss"} | EVALUATED,
    ],
)
def test_allowed_combination(config: Config) -> None:
    assert problems(FINE | config, KNOWN, {}) == []


@pytest.mark.parametrize("key", FINE)
def test_what_a_foreign_config_lacks_is_asked_for(key: str) -> None:
    config = {other: value for other, value in FINE.items() if other != key}
    assert [text.split(":")[0] for text in problems(config, KNOWN, {})] == [key]


def test_all_problems_at_once() -> None:
    wrong = FINE | {"stage": "dpo", "learning_rat": 1, "cutoff_len": "x", "bf16": True, "fp16": True}
    assert [text.split(":")[0] for text in problems(wrong, KNOWN, {})] == [
        "learning_rat",
        "cutoff_len",
        "stage",
        "bf16 and fp16",
    ]


def test_options_come_before_overrides() -> None:
    planned = plan(
        overrides={"eval_steps": 0.2}, options={"eval_steps": (0.05, "--early-stop"), "run_name": ("a", "b")}
    )
    assert provenance(planned, "eval_steps") == (0.2, "flag", "--set")
    assert provenance(planned, "run_name") == ("a", "flag", "b")


def test_early_stop_is_accepted_with_the_shipped_configs() -> None:
    for template in ("qlora", "tutorial"):
        planned = plan(template, options=SETTINGS)
        assert is_aligned(planned.config)
        check_validation(planned.config, [398])
