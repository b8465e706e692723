"""`--shard`: what the engines are handed, what is refused, and what is left of the memory. ZeRO for real:
tests/e2e/test_deepspeed.py. FSDP has no GPUs here: that it trains is not measured.
"""

import os
from dataclasses import replace

import pytest
import torch

from tests.plans import plan
from yi_tune.config import Config, dump_config, parse_config
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE
from yi_tune.plan import sharding
from yi_tune.plan.fit import Fit, choose_fit
from yi_tune.plan.memory import estimate, needed
from yi_tune.plan.sharding import Sharding, divided, environment, keys, unfit
from yi_tune.runs import differences

GPUS = Hardware("A GPU", bf16=True, free=24_000_000_000, count=2, visible="0,1")
CPUS = replace(GPUS, gpu=None, visible="")
LARGE = CATALOGUE["yi-1.5-34b-chat"].shape
assert LARGE
QLORA: Config = {"quantization_bit": 4, "lora_target": "all", "bf16": True, "per_device_train_batch_size": 1}
LORA: Config = {**QLORA, "quantization_bit": None}


@pytest.mark.parametrize(("template", "whole"), [("qlora", False), ("lora", True)])
def test_llamafactory_and_accelerate_make_fsdp_of_it(
    template: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin, dataclasses
    from llamafactory.hparams import get_train_args
    from torch.distributed.fsdp import ShardingStrategy, StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    config = plan(template).config
    config |= keys("fsdp", config)
    for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "")  # both libraries set them
    for name, value in environment("fsdp", GPUS).items():
        monkeypatch.setenv(name, value)
    _, _, training, *_ = get_train_args(parse_config(dump_config(config), "here"))
    monkeypatch.setattr(dataclasses, "is_cuda_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    plugin = FullyShardedDataParallelPlugin(**training.fsdp_plugin_args)
    assert (plugin.fsdp_version, plugin.sharding_strategy or plugin.reshard_after_forward) == (
        1,
        ShardingStrategy.FULL_SHARD,
    )
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT  # of any other no adapter is saved
    assert (plugin.use_orig_params, plugin.sync_module_states) == (True, True)
    assert plugin.cpu_ram_efficient_loading is whole
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"].lower() == str(whole).lower()
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"  # before the model is loaded


def test_4_bit_weights_are_stored_in_a_type_that_fsdp_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.hparams import get_train_args
    from llamafactory.model.model_utils.quantization import configure_quantization
    from transformers import LlamaConfig

    model, *_ = get_train_args(plan("qlora").config)
    loading: dict[str, object] = {}
    configure_quantization(LlamaConfig(), None, model, True, loading)
    assert loading["quantization_config"].bnb_4bit_quant_storage == torch.bfloat16  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_zero_is_told_the_division_by_the_config(kind: Sharding) -> None:
    told = keys(kind, LORA)["deepspeed"]
    assert told["zero_optimization"]["stage"] == int(kind[-1])
    assert {told[key] for key in told if key.startswith(("train_", "gradient_"))} == {"auto"}
    assert told["bf16"]["enabled"] == "auto"
    assert "optimizer" not in told  # DeepSpeed would compile its own
    assert told["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save", True)
    assert (environment(kind, CPUS), environment(kind, GPUS)) == ({"DS_ACCELERATOR": "cpu"}, {})
    assert environment(None, CPUS) == {}


@pytest.mark.parametrize(
    ("kind", "config", "hardware", "why"),
    [
        ("zero2", QLORA, replace(CPUS, count=1), "--shard divides a model among GPUs"),
        ("zero2", QLORA, replace(CPUS, nodes=2), "--shard goes with one machine"),
        ("zero3", QLORA, GPUS, "--shard zero3 is for 16 bits"),
        ("fsdp", QLORA | {"bf16": False}, replace(CPUS, count=1), "--shard fsdp needs GPUs"),
        ("fsdp", QLORA | {"quantization_bit": 8}, GPUS, "quantization_bit: FSDP divides"),
        ("fsdp", QLORA | {"optim": "paged_adamw_8bit"}, GPUS, "optim: FSDP cannot divide the states of paged_adamw"),
        ("fsdp", QLORA | {"bf16": False, "fp16": True}, GPUS, "bf16: FSDP wants all weights of a layer in one type"),
        ("fsdp", QLORA | {"upcast_layernorm": True}, GPUS, "upcast_layernorm: FSDP wants"),
        ("fsdp", LORA | {"additional_target": "lm_head"}, GPUS, "additional_target: FSDP wants"),
    ],
)
def test_what_it_cannot_be_had_with(
    kind: Sharding, config: Config, hardware: Hardware, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "find_spec", lambda name: name)
    (said,) = unfit(kind, config, hardware)
    assert said.startswith(why)


def test_ray_goes_with_gpus_of_a_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_RAY", "1")
    kinds: list[tuple[Sharding | None, Hardware]] = [(None, CPUS), (None, replace(GPUS, nodes=2)), ("fsdp", GPUS)]
    for kind, hardware in kinds:
        (said,) = unfit(kind, QLORA, hardware)
        assert said.startswith("USE_RAY goes with GPUs only")
    assert list(unfit(None, QLORA, GPUS)) == []


def test_what_it_can_be_had_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, config, hardware in (("fsdp", QLORA, GPUS), ("fsdp", LORA, GPUS), (None, QLORA, replace(CPUS, count=1))):
        assert list(unfit(kind, config, hardware)) == []
    monkeypatch.setattr(sharding, "find_spec", lambda name: None)
    (said,) = unfit("zero2", QLORA, GPUS)
    assert "pip install 'yi-tune[deepspeed]'" in said
    monkeypatch.setattr(sharding, "find_spec", lambda name: name)
    assert list(unfit("zero2", QLORA, CPUS)) == list(unfit("zero3", LORA, GPUS)) == []


def test_memory_of_each_for_34b() -> None:
    whole = estimate(LARGE, QLORA, 512, "cuda")
    base = whole["weights"] + whole["embeddings and head"]
    fsdp = divided(whole, "fsdp", LARGE, QLORA, 4)  # see docs/scale.md
    assert fsdp["gathered"] == whole["embeddings and head"] + 2 * whole["weights"] // 60
    assert sum(fsdp.values()) >= whole["CUDA"] + base  # it is loaded whole
    half = estimate(LARGE, LORA, 512, "cuda")
    assert "loading" not in divided(half, "fsdp", LARGE, LORA, 4)
    # 2 + 2 bytes of a trained parameter are the GPU's own, of which gradients, master and Adam's 12 are divided.
    trained = half["adapter"] // 4
    two = divided(half, "zero2", LARGE, LORA, 4)
    assert [two[name] for name in ("adapter", "gradients", "optimiser")] == [2 * trained, trained // 2, 3 * trained]
    assert two["weights"] == half["weights"]
    three = divided(half, "zero3", LARGE, LORA, 4)
    assert (three["weights"], three["adapter"], three["gathered"]) == (half["weights"] // 4, trained // 2, 2 * 10**9)
    assert needed(three) < needed(half) / 3


def test_what_does_not_fit_one_fits_several_divided() -> None:
    assert not choose_fit(LARGE, LORA, [512] * 400, replace(GPUS, count=8)).fits
    fit = choose_fit(LARGE, LORA, [512] * 400, replace(GPUS, count=8), "zero3")
    assert fit.fits
    assert "8 GPUs. ZeRO-3 divides the weights, the gradients and the optimiser among all.\nMemory: " in fit.summary
    assert fit.forecast.startswith("Time: not estimated")  # nor is it said that they gain nothing
    # One GPU answers afterwards, which 16 bits are too much for.
    planned = plan("lora", model=CATALOGUE["yi-1.5-34b-chat"], fit=fit)
    assert planned.chat_config["quantization_bit"] == 4


def test_a_run_goes_on_with_the_same_sharding_alone() -> None:
    def record(kind: Sharding | None, count: int) -> dict[str, object]:
        planned = plan(fit=Fit(8 // count, 1, False, replace(GPUS, count=count), sharding=kind))
        return planned.record | {"config": planned.config | (keys(kind, planned.config) if kind else {})}

    assert differences(record("fsdp", 2), record("fsdp", 4)) == []
    assert differences(record(None, 2), record("fsdp", 2)) == ["sharding: None -> fsdp"]
    assert differences(record("zero2", 2), record("zero2", 2)) == []
    assert differences(record("zero2", 2), record("zero2", 4)) == ["sharding: zero2 on 2 GPUs -> zero2 on 4 GPUs"]
    old = record(None, 2)
    del old["sharding"]
    assert differences(old, record(None, 4)) == []
