import pytest

from yi_tune.models import CATALOGUE, Shape
from yi_tune.plan.memory import estimate

QLORA = {"quantization_bit": 4, "per_device_train_batch_size": 8, "disable_gradient_checkpointing": True}
SMALL = Shape(hidden=64, layers=2, heads=4, kv_heads=1, ffn=128, vocab=1000)


def yi(size: str) -> Shape:
    shape = CATALOGUE[f"yi-1.5-{size}-chat"].shape
    assert shape is not None
    return shape


def test_by_hand() -> None:
    parts = estimate(SMALL, QLORA, 30, "cuda").parts
    # A row of 30 tokens is padded to 32. q is 64 wide, k and v 16.
    tokens, linear = 8 * 32, 2 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 128)
    rank = 8 * 2 * ((64 + 64) * 2 + (64 + 16) * 2 + 3 * (64 + 128))
    layer = tokens * (12 * 64 + 8 * 64 + 8 * 128)
    assert parts["weights"] == int(linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8)
    assert parts["embeddings and head"] == 2 * (2 * 1000 * 64 + 5 * 64)
    assert (parts["adapter"], parts["gradients"], parts["optimiser"]) == (4 * rank, 4 * rank, 8 * rank)
    assert parts["logits"] == tokens * 1000 * 12
    assert parts["activations"] == 2 * layer + tokens * 4 * 64  # a layer going backward takes less than the logits
    assert parts["model file"] == 0


def test_of_the_config() -> None:
    base = estimate(SMALL, QLORA, 30, "cuda")
    for change, part, factor in (
        ({"lora_rank": 16}, "adapter", 2),
        ({"per_device_train_batch_size": 4}, "logits", 0.5),
        ({"quantization_bit": 8}, "weights", 8 / 4.126953125),
        ({"quantization_bit": None}, "weights", 16 / 4.126953125),
        ({"lora_target": "gate_proj, up_proj, down_proj"}, "gradients", 3 * 192 / (128 * 2 + 80 * 2 + 3 * 192)),
    ):
        changed = estimate(SMALL, QLORA | change, 30, "cuda")
        assert changed.parts[part] == pytest.approx(base.parts[part] * factor, rel=1e-4), change
    full = estimate(SMALL, {"finetuning_type": "full"}, 30, "cuda").parts
    assert (full["adapter"], full["gradients"]) == (0, 4 * SMALL.parameters)


def test_a_cpus_activations_by_precision() -> None:
    tokens, (h, q, f) = 8 * 32, (64, 64, 128)
    scores = 6 * 4 * 32
    for config, layer in (
        ({"bf16": True}, 18 * h + 10 * q + 8 * f),
        ({"bf16": True, "flash_attn": "disabled"}, 18 * h + 10 * q + 8 * f + scores),
        ({"flash_attn": "disabled"}, 28 * h + 10 * q + 10 * f + scores),
    ):
        parts = estimate(SMALL, QLORA | config, 30, "cpu").parts
        assert parts["activations"] == tokens * (2 * layer + 4 * h)


def test_checkpointing_keeps_less() -> None:
    for size in ("6b", "9b", "34b"):
        without, with_it = (
            estimate(yi(size), QLORA | {"disable_gradient_checkpointing": off}, 72, "cuda") for off in (True, False)
        )
        assert with_it.parts["activations"] < without.parts["activations"] / 10


def test_grows_with_the_model_and_lies_between_4_and_16_bits() -> None:
    totals = [estimate(yi(size), QLORA, 72, "cuda").total for size in ("6b", "9b", "34b")]
    assert totals == sorted(totals)
    for size, total in zip(("6b", "9b", "34b"), totals, strict=True):
        assert yi(size).weight_bytes / 4 < total < yi(size).weight_bytes


def test_answers_count_where_a_step_takes_less() -> None:
    small_steps = QLORA | {"per_device_train_batch_size": 1, "disable_gradient_checkpointing": False}
    assert estimate(yi("34b"), small_steps, 72, "cuda").parts["answers"] > 500_000_000
    assert estimate(yi("34b"), QLORA, 72, "cuda").parts["answers"] == 0


def test_what_should_be_free_is_more_than_the_estimate_but_for_the_weights() -> None:
    estimated = estimate(yi("6b"), QLORA, 72, "cuda")
    weights = estimated.parts["weights"] + estimated.parts["embeddings and head"]
    assert estimated.needed - weights == pytest.approx(1.25 * (estimated.total - weights))
    # Pages of a file do not count.
    on_cpu = estimate(yi("6b"), QLORA, 72, "cpu")
    assert on_cpu.parts["model file"] > 10_000_000_000
    assert on_cpu.needed < 1.25 * (on_cpu.total - on_cpu.parts["model file"])


@pytest.mark.parametrize("value", ["long", 0, -1, None, 1.5])
def test_values_that_are_none_are_left_to_be_reported(value: object) -> None:
    wrong = QLORA | {"per_device_train_batch_size": value, "lora_rank": value}
    assert estimate(SMALL, wrong, 30, "cuda") == estimate(SMALL, QLORA, 30, "cuda")
