"""Whether own rows are packed: several in one sequence, each blind to the others (LLaMA-Factory's `neat_packing`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from yi_tune.output import engine_output_to, log_folder
from yi_tune.plan.plan import Setting, TrainPlan

# How far the tokens of an update may be from what they are without packing.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Packing:
    """The answer, and why. `accumulation` is that with which an update sees as many tokens as it does unpacked."""

    pays: bool
    why: str
    accumulation: int = 1


def choose_packing(
    own: Sequence[int],
    alone: int,
    packs: int,
    *,
    micro_batch: int,
    accumulation: int,
    cutoff_len: int,
    flash_attn: str,
) -> Packing:
    """Decide for rows of `own` lengths in tokens, beside as many as `alone` that are never packed.

    `packs` is how many sequences of at most `cutoff_len` tokens the own rows fill. A pack is a micro-batch
    by itself, and so is then every other row: nothing is padded. A step is a forward and backward pass.
    """
    if flash_attn not in ("auto", "sdpa", "disabled"):
        return Packing(False, f"not known to be exact with flash_attn {flash_attn}")
    if micro_batch * max(own) < cutoff_len:
        return Packing(False, f"{cutoff_len} tokens in a step need more memory than these rows do")
    rows, packed_steps = len(own) + alone, packs + alone
    steps = -(-rows // micro_batch)
    compared = f"{packed_steps:,} steps an epoch packed, {steps:,} not packed"
    if packed_steps >= steps:
        return Packing(False, compared)
    # The tokens of an epoch are the same: so many steps to an update leave as many updates as there were.
    exact = micro_batch * accumulation * packed_steps / rows
    packed_accumulation = max(1, round(exact))
    if abs(packed_accumulation - exact) > _TOLERANCE * exact:
        return Packing(False, f"no number of packs comes to the tokens of an update: {exact:.2f} would")
    return Packing(True, f"{compared}, at the same tokens an update", packed_accumulation)


def plan_packing(planned: TrainPlan) -> TrainPlan:
    """The plan with own rows packed where that pays, and the config leaves it and the batch to the machine."""
    sources = {setting.key: setting.source for setting in planned.settings}
    if planned.own is None or not planned.own.lengths or sources.get("neat_packing") != "data":
        return planned
    if {sources.get(key) for key in ("per_device_train_batch_size", "gradient_accumulation_steps")} != {"hardware"}:
        return _with_packing(planned, Packing(False, "the batch is set by hand"))
    with engine_output_to(log_folder() / "data.log"):
        from yi_tune.engine.mixture import count_packs

    config = planned.config
    cutoff_len = config.get("cutoff_len", 2048)
    own = [min(length, cutoff_len) for length in planned.own.lengths]
    others = sum(dataset.rows for dataset in planned.datasets if dataset.name != "own")
    packing = choose_packing(
        own,
        others + planned.replay,
        count_packs(own, cutoff_len),
        micro_batch=config["per_device_train_batch_size"],
        accumulation=config["gradient_accumulation_steps"],
        cutoff_len=cutoff_len,
        flash_attn=config.get("flash_attn", "auto"),
    )
    return _with_packing(planned, packing)


def _with_packing(planned: TrainPlan, packing: Packing) -> TrainPlan:
    """The plan with what was decided about packing."""
    changes: dict[str, Any] = {"neat_packing": packing.pays}
    if packing.pays:
        changes |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": packing.accumulation}
    settings = (
        Setting(setting.key, changes[setting.key], "data", packing.why) if setting.key in changes else setting
        for setting in planned.settings
    )
    return replace(planned, settings=tuple(settings))
