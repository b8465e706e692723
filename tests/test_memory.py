import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from yi_tune.config import find_config, read_config
from yi_tune.data.general import LONGEST, Prompt
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel, Model, Shape, find_model
from yi_tune.plan.fit import EFFECTIVE_BATCH, choose_fit, refuse, row_lengths, smaller
from yi_tune.plan.memory import ACCUMULATION, EVAL, MICRO, NO_CHECKPOINTING, answering, estimate, needed

GB = 1_000_000_000
FOUR_BIT = {"quantization_bit": 4, MICRO: 8, NO_CHECKPOINTING: True}
QLORA = read_config(find_config("qlora"))
SMALL = Shape(hidden=64, layers=2, heads=4, kv_heads=1, ffn=128, vocab=1000)


def yi(size: str) -> Shape:
    shape = CATALOGUE[f"yi-1.5-{size}-chat"].shape
    assert shape
    return shape


SIX, NINE, LARGE = yi("6b"), yi("9b"), yi("34b")


def gpu(gigabytes: float) -> Hardware:
    return Hardware("NVIDIA GPU", bf16=True, free=int(gigabytes * GB))


def test_by_hand() -> None:
    parts = estimate(SMALL, FOUR_BIT, 30, "cuda")
    # A row of 30 tokens is padded to 32. q is 64 wide, k and v 16.
    tokens, linear = 8 * 32, 2 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 128)
    rank = 8 * 2 * ((64 + 64) * 2 + (64 + 16) * 2 + 3 * (64 + 128))
    layer = tokens * (12 * 64 + 8 * 64 + 8 * 128 + 2 * 32)
    assert parts["weights"] == int(linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8)
    assert estimate(SMALL, FOUR_BIT | {"quantization_bit": 8}, 30, "cuda")["weights"] == linear
    assert parts["embeddings and head"] == 2 * (2 * 1000 * 64 + 5 * 64)
    assert (parts["adapter"], parts["gradients"], parts["optimiser"]) == (4 * rank, 4 * rank, 8 * rank)
    assert parts["logits"] == tokens * 1000 * 14
    assert parts["activations"] == 2 * layer + tokens * 4 * 64  # a layer going backward takes less than the logits
    assert parts["model file"] == 0


# Bytes of a token in a layer of SMALL: norms, attention, SiLU with up; and SDPA's mask.
KEPT, MASK = 8 * 64 + 8 * 64 + 6 * 128, 2 * 32


@pytest.mark.parametrize(
    ("device", "config", "token"),
    [
        ("cuda", {}, KEPT + MASK + 4 * 64 + 2 * 128),
        ("cuda", {"lora_target": "q_proj,v_proj"}, KEPT + MASK + 2 * 64),
        ("cuda", {"lora_target": "o_proj"}, KEPT + MASK),
        ("cuda", {"quantization_bit": None}, KEPT + MASK + 2 * (6 * 64 + 128)),
        ("cpu", {"pure_bf16": True}, KEPT + MASK + 2 * (6 * 64 + 128)),
        ("cpu", {"pure_bf16": True, "flash_attn": "disabled"}, KEPT + 2 * (6 * 64 + 128) + 6 * 4 * 32),
        ("cpu", {"flash_attn": "disabled"}, 28 * 64 + 10 * 64 + 10 * 128 + 6 * 4 * 32),
    ],
)
def test_what_a_layer_keeps(device: str, config: dict[str, Any], token: int) -> None:
    # 256 tokens, two layers; a layer going backward takes less than the logits.
    assert estimate(SMALL, FOUR_BIT | config, 30, device)["activations"] == 256 * (2 * token + 4 * 64)


@pytest.mark.parametrize(("count", "micro"), [(2, 4), (4, 2), (8, 1)])
def test_gpus_share_the_rows_of_a_step(count: int, micro: int) -> None:
    fit = choose_fit(SIX, QLORA, [40] * 400, replace(gpu(80), count=count))
    assert (fit.micro_batch, fit.accumulation, fit.rows) == (micro, 1, EFFECTIVE_BATCH)
    assert fit.summary.startswith(
        f"The 8 rows of a step: {micro} x 1 on each of {count} GPUs, each with the whole model.\n"
    )
    assert fit.summary.endswith("80.0 GB of GPU memory free for each.")
    assert fit.parts
    assert fit.parts["buckets"] == fit.parts["gradients"]
    # With less memory each has less at once.
    small = choose_fit(SIX, QLORA, [1000] * 400, replace(gpu(9), count=count))
    assert (small.micro_batch * small.accumulation * count, small.checkpointing) == (8, True)


def test_answers_count_where_a_step_takes_less() -> None:
    assert estimate(SIX, FOUR_BIT, 72, "cuda")["answers"] == 0
    small_steps = FOUR_BIT | {MICRO: 1, NO_CHECKPOINTING: False}
    assert estimate(LARGE, small_steps, 72, "cuda")["answers"] > 500_000_000


def test_free_should_be_more_than_the_estimate_but_for_the_weights() -> None:
    estimated = estimate(SIX, FOUR_BIT, 72, "cuda")
    weights = estimated["weights"] + estimated["embeddings and head"]
    assert needed(estimated) - weights == pytest.approx(1.25 * (sum(estimated.values()) - weights))
    # Pages of a file do not count.
    on_cpu = estimate(SIX, FOUR_BIT, 72, "cpu")
    assert on_cpu["model file"] > 10 * GB
    assert needed(on_cpu) < 1.25 * (sum(on_cpu.values()) - on_cpu["model file"])


@pytest.mark.parametrize("value", ["many", 0, -1, None, 2.5])
def test_values_that_are_none_are_left_to_be_reported(value: object) -> None:
    wrong = FOUR_BIT | {MICRO: value, "lora_rank": value}
    assert estimate(SMALL, wrong, 30, "cuda") == estimate(SMALL, FOUR_BIT, 30, "cuda")
    choose_fit(SIX, QLORA | {MICRO: value, ACCUMULATION: value, NO_CHECKPOINTING: value}, [72], gpu(80))


def division(shape: Shape | None, gigabytes: float, length: int = 72, **config: Any) -> tuple[int, int, bool]:
    fit = choose_fit(shape, QLORA | config, [length] * 64, gpu(gigabytes))
    return fit.micro_batch, fit.accumulation, fit.checkpointing


def test_the_division_is_the_one_that_takes_the_least_time() -> None:
    assert division(SIX, 80) == (8, 1, False)
    # Two micro-steps without checkpointing take less than one with a second forward pass.
    assert division(SIX, 8) == (4, 2, False)
    assert division(SIX, 16, length=1024) == (1, 8, False)
    assert division(SIX, 8, length=1024) == (1, 8, True)
    found = [choose_fit(SIX, QLORA, [1024] * 64, gpu(size)) for size in range(6, 80)]
    assert {fit.micro_batch * fit.accumulation for fit in found} == {8}
    assert all(fit.parts and fit.fits == (needed(fit.parts) <= fit.hardware.free) for fit in found)
    times = [fit.cost for fit in found if fit.fits]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) > 3


def test_padding_costs_time() -> None:
    # One long row of each eight, in no order: a micro-batch of 8 would be nearly all padding.
    lengths = [40, 40, 40, 40, 40, 40, 40, 640] * 64
    shuffled = QLORA | {"train_sampling_strategy": "random"}
    assert choose_fit(SIX, shuffled, lengths, gpu(80)).micro_batch < 8
    assert choose_fit(SIX, QLORA, lengths, gpu(80)).micro_batch == 8


def test_a_users_values_are_obeyed() -> None:
    assert division(SIX, 80, **{MICRO: 2}) == (2, 4, False)
    assert division(SIX, 80, **{MICRO: 16}) == (16, 1, False)
    assert division(SIX, 80, **{MICRO: 2, ACCUMULATION: 1}) == (2, 1, False)
    assert division(SIX, 80, **{ACCUMULATION: 4}) == (2, 4, False)
    assert division(SIX, 80, **{NO_CHECKPOINTING: False}) == (8, 1, True)
    # The tutorial's file leaves nothing open.
    tutorial = read_config(find_config("tutorial"))
    assert tutorial[MICRO] * tutorial[ACCUMULATION] == EFFECTIVE_BATCH
    fit = choose_fit(SIX, tutorial, [72], gpu(80))
    assert (fit.micro_batch, fit.accumulation, fit.checkpointing) == (1, 8, True)
    assert not choose_fit(LARGE, QLORA | {MICRO: 8}, [4096], gpu(20)).fits


def test_summary() -> None:
    summary = choose_fit(SIX, QLORA, [72], gpu(24)).summary
    for part in ("CUDA 1.0 GB", "weights 2.9 GB", "optimiser", "logits", "24.0 GB of GPU memory free"):
        assert part in summary
    assert "model file" not in summary
    fit = choose_fit(None, QLORA, [72], gpu(1))
    assert (fit.micro_batch, fit.accumulation, fit.fits, "not estimated" in fit.summary) == (8, 1, True, True)


def test_refusal_lists_the_remedies() -> None:
    fit = choose_fit(SIX, QLORA, [4000], gpu(3))
    assert not fit.fits
    error = refuse(fit, "it")
    assert "it does not fit: " in error.message
    assert "3.0 GB free" in error.message
    for remedy in ("--replay 0", "longest row has 4000 tokens", "--config qlora", "--model nano"):
        assert remedy in error.hint


def test_smaller_steps_down_to_one_row() -> None:
    config = {MICRO: 6, ACCUMULATION: 2, EVAL: 6, NO_CHECKPOINTING: True}
    sizes = []
    while changes := smaller(config):
        config |= changes
        sizes.append((config[MICRO], config[ACCUMULATION], config[NO_CHECKPOINTING]))
    assert sizes == [(3, 4, True), (1, 12, True), (1, 12, False)]
    assert config[EVAL] == 1
    assert smaller({MICRO: 1, EVAL: 8}) == {EVAL: 1, NO_CHECKPOINTING: False}


def test_row_lengths(tmp_path: Path) -> None:
    nano, unknown = find_model("nano", tmp_path), find_model("yi-1.5-6b-chat", tmp_path)
    short, long = ([{"role": "user", "content": text}] for text in ("你好", "你好吗？" * 20))
    prompts = [Prompt("en", "fact", "Why?")]
    one, other = row_lengths(nano, {}, [short, long], [])
    assert one < other < len("你好吗？".encode()) * 20
    # Without a tokenizer there are bytes, and more of them; the base's answers may be long.
    assert row_lengths(unknown, {}, [short, long], [])[1] > other
    assert row_lengths(nano, {}, [short, long], prompts)[:2] == [one, other]
    assert row_lengths(nano, {}, [short, long], prompts)[2] > LONGEST
    assert row_lengths(nano, {"cutoff_len": 10}, [short, long], [], [77]) == [one, 10, 10]
    assert row_lengths(nano, {"cutoff_len": 100, "packing": True}, [short], [], [77, 88]) == [100, 100]


def test_tokenizer_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(YiTuneError, match="does not load"):
        row_lengths(LocalModel(Model("it", "it"), tmp_path), {}, [[{"role": "user", "content": "a"}]], [])


@pytest.mark.parametrize(
    ("shape", "hardware", "bits", "expected"),
    [
        (SIX, gpu(24), 4, {"infer_dtype": "bfloat16"}),
        (SIX, gpu(16), 4, {"quantization_bit": 4, "infer_dtype": "bfloat16"}),
        (NINE, gpu(24), 8, {"quantization_bit": 8, "infer_dtype": "bfloat16"}),
        (SIX, replace(gpu(24), bf16=False), 4, {"infer_dtype": "float16"}),
        (SIX, gpu(8), None, {"infer_dtype": "bfloat16"}),
        (SIX, Hardware(None, bf16=False, free=24 * GB), 4, {"quantization_bit": 4, "infer_dtype": "float32"}),
        (SIX, Hardware(None, bf16=False, free=64 * GB), 4, {"infer_dtype": "float32"}),
        (None, gpu(140), 4, {"quantization_bit": 4, "infer_dtype": "bfloat16"}),
    ],
)
def test_answers_come_unquantised_where_memory_holds_that(
    shape: Shape | None, hardware: Hardware, bits: int | None, expected: dict[str, Any]
) -> None:
    assert answering(shape, hardware, bits) == expected
