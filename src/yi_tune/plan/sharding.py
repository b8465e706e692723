"""`train --shard`: the states of training divided among the GPUs of a machine, by FSDP or DeepSpeed's ZeRO.

All that LLaMA-Factory and torchrun are told of it is here. Nothing of it was measured on GPUs yet.
"""

from collections.abc import Iterator
from gettext import gettext as _
from importlib.util import find_spec
from typing import Any, Literal

from yi_tune.config import Config
from yi_tune.hardware import Hardware, uses_ray
from yi_tune.language import english
from yi_tune.models import Shape

Sharding = Literal["fsdp", "zero2", "zero3"]
# What is divided, for messages.
DIVIDED = {
    "fsdp": english("FSDP divides the weights, the gradients and the optimiser among all."),
    "zero2": english("ZeRO-2 divides the gradients and the optimiser among all; each has all weights."),
    "zero3": english("ZeRO-3 divides the weights, the gradients and the optimiser among all."),
}
# Elements that ZeRO-3 may have gathered at a time: DeepSpeed's default of stage3_max_live_parameters.
_LIVE = 1_000_000_000


def keys(sharding: Sharding, config: Config) -> Config:
    """The keys of LLaMA-Factory's config for it.

    FSDP 1, since FSDP 2 makes float32 of packed 4-bit weights, and other weights of them. A quantised model is loaded
    as without FSDP; else the first process alone reads it, and sends the others theirs.
    """
    if sharding == "fsdp":
        whole = not config.get("quantization_bit")
        options = {"version": 1, "backward_prefetch": "backward_pre", "cpu_ram_efficient_loading": whole}
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": {**options, "sync_module_states": True}}
    # "auto" is what the other keys of the config say.
    filled = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    divided: dict[str, Any] = {"stage": 2, "overlap_comm": False, "reduce_bucket_size": "auto"}
    if sharding == "zero3":
        divided |= {"stage": 3, "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
        divided |= {"stage3_max_live_parameters": _LIVE, "stage3_gather_16bit_weights_on_model_save": True}
    types = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}
    # Without an "optimizer" the Trainer makes torch's, and DeepSpeed compiles none of its own.
    return {"deepspeed": {**dict.fromkeys(filled, "auto"), **types, "zero_optimization": divided}}


def environment(sharding: Sharding | None, hardware: Hardware) -> dict[str, str]:
    """What else the environment of the processes that train has to say of it."""
    if sharding == "fsdp":  # a whole adapter is saved of a whole state alone
        return {"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    return {"DS_ACCELERATOR": "cpu"} if sharding and not hardware.gpu else {}


def unfit(sharding: Sharding | None, config: Config, hardware: Hardware) -> Iterator[str]:
    """What in a config, or of the machine, it cannot be had with."""
    quantised, optimiser = config.get("quantization_bit"), str(config.get("optim", ""))
    if uses_ray() and (sharding or hardware.nodes > 1 or not hardware.gpu):
        yield _(
            "USE_RAY goes with GPUs only, and without --nodes and --shard. Unset it: --gpus and --nodes need no Ray."
        )
    if not sharding:
        return
    if sharding == "fsdp" and not hardware.gpu:
        yield _("--shard fsdp needs GPUs. On a CPU, --shard zero2 --gpus 2 can be tried, in two processes.")
        return
    if hardware.count == 1:
        yield _("--shard divides a model among GPUs: add --gpus 2 or more, or leave it out.")
    if hardware.nodes > 1:
        yield _("--shard goes with one machine: the others would lack a part of each checkpoint. Leave out --nodes.")
    if sharding != "fsdp":
        if not find_spec("deepspeed"):
            yield _(
                "--shard {sharding} needs DeepSpeed, which is not installed: pip install 'yi-tune[deepspeed]'"
            ).format(sharding=sharding)
        if sharding == "zero3" and quantised:
            yield _("--shard zero3 is for 16 bits: --config lora. Divide quantised weights by --shard fsdp.")
        return
    if quantised not in (None, 4):
        yield _("quantization_bit: FSDP divides weights of 4 or 16 bits.")
    if "8bit" in optimiser or "paged" in optimiser:
        yield _("optim: FSDP cannot divide the states of {optimiser}. Leave it out, for AdamW.").format(
            optimiser=optimiser
        )
    if not (config.get("bf16") or config.get("pure_bf16")):
        yield _("bf16: FSDP wants all weights of a layer in one type, and they come in bf16.")
    for key in ("upcast_layernorm", "additional_target"):
        if config.get(key):
            yield _("{key}: FSDP wants all weights of a layer in one type.").format(key=key)


def divided(parts: dict[str, int], sharding: Sharding, shape: Shape, config: Config, gpus: int) -> dict[str, int]:
    """The memory that each of so many GPUs needs, of that which one needs for the whole: bytes by what takes them.

    Rajbhandari et al., ZeRO (arXiv 1910.02054), section 5: of the trained parameters, gradients and optimiser are
    divided, and with FSDP and ZeRO-3 all parameters. ZeRO computes with 16 bits of them, beside a float32 copy that the
    optimiser has. What is divided is gathered to compute: by FSDP the embeddings and the head for a whole micro-step,
    and two layers (Zhao et al., PyTorch FSDP, arXiv 2304.11277, section 3); by ZeRO-3 at most _LIVE elements. While it
    is loaded, a quantised model is whole on each GPU.
    """
    weights, rest, trained = parts["weights"], parts["embeddings and head"], parts["adapter"]
    if sharding != "fsdp" and (config.get("bf16") or config.get("fp16")):
        halves = {"adapter": trained // 2, "gradients": parts["gradients"] // 2}
        parts = parts | halves | {"optimiser": parts["optimiser"] + trained}
    names = ["gradients", "optimiser"]
    if sharding != "zero2":
        names += ["weights", "embeddings and head", "adapter"]
    each = parts | {name: -(-parts[name] // gpus) for name in names}
    if sharding == "fsdp":
        each[english("gathered")] = rest + 2 * weights // shape.layers
        if config.get("quantization_bit"):
            each[english("loading")] = max(0, parts.get("CUDA", 0) + weights + rest - sum(each.values()))
    else:
        each["buckets"] = each["adapter"] if sharding == "zero2" else parts["adapter"]
        each |= {"gathered": min(weights + rest, 2 * _LIVE)} if sharding == "zero3" else {}
    return each
