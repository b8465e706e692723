from dataclasses import replace
from typing import Any

import pytest

from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, Shape
from yi_tune.plan.answering import answering

GB = 1_000_000_000
SIX, NINE = (CATALOGUE[f"yi-1.5-{size}-chat"].shape for size in ("6b", "9b"))


def gpu(gigabytes: float) -> Hardware:
    return Hardware("NVIDIA GPU", bf16=True, free=int(gigabytes * GB))


@pytest.mark.parametrize(
    ("shape", "hardware", "bits", "expected"),
    [
        (SIX, gpu(24), 4, {"infer_dtype": "bfloat16"}),
        (SIX, gpu(16), 4, {"quantization_bit": 4, "infer_dtype": "bfloat16"}),
        (NINE, gpu(24), 8, {"quantization_bit": 8, "infer_dtype": "bfloat16"}),
        (NINE, gpu(48), 8, {"infer_dtype": "bfloat16"}),
        (SIX, replace(gpu(24), bf16=False), 4, {"infer_dtype": "float16"}),
        (SIX, gpu(8), None, {"infer_dtype": "bfloat16"}),
        (SIX, Hardware(None, bf16=True, free=24 * GB), 4, {"infer_dtype": "bfloat16"}),
        (SIX, Hardware(None, bf16=False, free=24 * GB), 4, {"quantization_bit": 4}),
        (SIX, Hardware(None, bf16=False, free=64 * GB), 4, {"infer_dtype": "float32"}),
        (None, gpu(140), 4, {"quantization_bit": 4, "infer_dtype": "bfloat16"}),
    ],
)
def test_answers_come_unquantised_where_memory_holds_that(
    shape: Shape | None, hardware: Hardware, bits: int | None, expected: dict[str, Any]
) -> None:
    assert answering(shape, hardware, bits) == expected
