from dataclasses import replace
from typing import Any

import pytest

from yi_tune.config import find_config, read_config
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, Shape
from yi_tune.plan.fit import EFFECTIVE_BATCH, byte_bound, choose_fit, refuse, smaller

GB = 1_000_000_000
QLORA = read_config(find_config("qlora"))
MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
SIX, NINE, LARGE = (CATALOGUE[f"yi-1.5-{size}-chat"].shape for size in ("6b", "9b", "34b"))


def gpu(gigabytes: float) -> Hardware:
    return Hardware("NVIDIA GPU", bf16=True, free=int(gigabytes * GB))


def division(shape: Shape | None, gigabytes: float, length: int = 72, **config: Any) -> tuple[int, int, bool]:
    fit = choose_fit(shape, QLORA | config, length, gpu(gigabytes))
    return fit.micro_batch, fit.accumulation, fit.checkpointing


def test_the_more_memory_the_larger_the_steps() -> None:
    assert division(SIX, 80) == (8, 1, False)
    assert division(SIX, 8) == (8, 1, True)
    assert division(SIX, 16, length=1024) == (4, 2, True)
    found = [choose_fit(SIX, QLORA, 1024, gpu(size)) for size in range(6, 80)]
    assert {fit.micro_batch * fit.accumulation for fit in found} == {8}
    fitting = [fit.micro_batch for fit in found if fit.fits]
    assert fitting == sorted(fitting)
    assert {1, 2, 4, 8} == set(fitting)


def test_rows_of_a_step_are_the_tutorials() -> None:
    tutorial = read_config(find_config("tutorial"))
    assert tutorial[MICRO] * tutorial[ACCUMULATION] == EFFECTIVE_BATCH


def test_what_fits_is_what_the_estimate_says() -> None:
    for size in range(5, 40):
        fit = choose_fit(NINE, QLORA, 512, gpu(size))
        assert fit.estimate is not None
        assert fit.fits == (fit.estimate.needed <= size * GB)


def test_a_users_values_are_obeyed() -> None:
    assert division(SIX, 80, **{MICRO: 2}) == (2, 4, False)
    assert division(SIX, 80, **{MICRO: 16}) == (16, 1, False)
    assert division(SIX, 80, **{MICRO: 2, ACCUMULATION: 1}) == (2, 1, False)
    assert division(SIX, 80, **{ACCUMULATION: 4}) == (2, 4, False)
    assert division(SIX, 80, disable_gradient_checkpointing=False) == (8, 1, True)
    # The tutorial's file leaves nothing open.
    fit = choose_fit(SIX, read_config(find_config("tutorial")), 72, gpu(80))
    assert (fit.micro_batch, fit.accumulation, fit.checkpointing) == (1, 8, True)
    assert not choose_fit(LARGE, QLORA | {MICRO: 8}, 4096, gpu(20)).fits


@pytest.mark.parametrize("value", ["many", 0, None, 2.5])
def test_values_that_are_none_are_left_to_be_reported(value: object) -> None:
    choose_fit(SIX, QLORA | {MICRO: value, ACCUMULATION: value, "disable_gradient_checkpointing": value}, 72, gpu(80))


def test_without_a_shape_nothing_is_estimated() -> None:
    fit = choose_fit(None, QLORA, 72, gpu(1))
    assert (fit.micro_batch, fit.accumulation, fit.fits) == (8, 1, True)
    assert "not estimated" in fit.summary


def test_summary() -> None:
    summary = choose_fit(SIX, QLORA, 72, gpu(24)).summary
    for part in ("CUDA 1.0 GB", "weights 2.9 GB", "optimiser", "logits", "24.0 GB of GPU memory free"):
        assert part in summary
    assert "model file" not in summary


def refusal(shape: Shape, hardware: Hardware, length: int, **config: Any) -> str:
    fit = choose_fit(shape, QLORA | config, length, hardware)
    assert not fit.fits
    error = refuse(fit, "it")
    return f"{error.message} {error.hint}"


def test_refusal_names_what_would_fit() -> None:
    assert SIX
    assert NINE
    assert LARGE
    said = refusal(LARGE, gpu(16), 72)
    assert "it does not fit" in said
    assert "--model yi-1.5-9b-chat;" in said
    assert "more GPUs" in said
    assert "cutoff" not in said  # a row of one token would not fit either
    assert "--config qlora" not in said
    assert "--config qlora" in refusal(SIX, gpu(10), 72, quantization_bit=None)
    assert "--model nano" in refusal(SIX, gpu(2), 72)
    without_gpu = refusal(SIX, replace(gpu(6), gpu=None), 72)
    assert "--model nano" in without_gpu
    assert "more GPUs" not in without_gpu
    little = choose_fit(SIX, QLORA, 72, gpu(2))
    assert "--model" not in refuse(little, "nano").hint


def test_refusal_of_large_steps_names_smaller_ones() -> None:
    assert SIX
    said = refusal(SIX, gpu(16), 1024, per_device_train_batch_size=64)
    assert "--set per_device_train_batch_size=4;" in said
    assert "--model" not in said
    assert "cutoff" not in said
    both = {"per_device_train_batch_size": 64, "disable_gradient_checkpointing": True}
    assert "=4 --set disable_gradient_checkpointing=false" in refusal(SIX, gpu(16), 1024, **both)


def test_refusal_names_replay_where_the_rows_would_fit_without() -> None:
    fit = choose_fit(SIX, QLORA, 4000, gpu(8))
    assert "--replay 0" in refuse(fit, "it", without_replay=100).hint
    assert "--replay 0" not in refuse(fit, "it", without_replay=4000).hint
    assert "--replay 0" not in refuse(fit, "it").hint


def test_refusal_names_a_cutoff_that_would_fit() -> None:
    assert SIX
    said = refusal(SIX, gpu(8), 4000)
    cutoff = int(said.partition("cutoff_len=")[2].split()[0])
    assert 64 <= cutoff < 4000
    assert choose_fit(SIX, QLORA, cutoff, gpu(8)).fits
    assert not choose_fit(SIX, QLORA, cutoff + 8, gpu(8)).fits


def test_precision_is_estimated_as_the_machines() -> None:
    with_it, without = (
        choose_fit(SIX, QLORA, 72, Hardware(None, bf16=bf16, free=64 * GB)).estimate for bf16 in (True, False)
    )
    assert with_it
    assert without
    assert without.parts["activations"] > with_it.parts["activations"]


def test_shorter_rows_take_larger_steps() -> None:
    fit = choose_fit(SIX, QLORA, 1024, gpu(16))
    assert (fit.micro_batch, fit.accumulation) == (4, 2)
    assert fit.for_rows_of(72) == choose_fit(SIX, QLORA, 72, gpu(16))
    assert fit.for_rows_of(72).micro_batch == 8


def test_smaller_steps_down_to_one_row() -> None:
    config = {MICRO: 6, ACCUMULATION: 2, "per_device_eval_batch_size": 6, "disable_gradient_checkpointing": True}
    sizes = []
    while changes := smaller(config):
        config |= changes
        sizes.append((config[MICRO], config[ACCUMULATION], config["disable_gradient_checkpointing"]))
    assert sizes == [(3, 4, True), (1, 12, True), (1, 12, False)]
    assert config["per_device_eval_batch_size"] == 1


def test_smaller_evaluations_before_checkpointing() -> None:
    config = {MICRO: 1, "per_device_eval_batch_size": 8, "disable_gradient_checkpointing": True}
    assert smaller(config) == {"per_device_eval_batch_size": 1}


def test_bytes_are_more_than_tokens() -> None:
    assert byte_bound([[{"role": "user", "content": "你好"}], [{"role": "user", "content": "a"}]]) == 14
