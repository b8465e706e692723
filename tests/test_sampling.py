import math
import re
from typing import Any

import pytest

from yi_tune.errors import YiTuneError
from yi_tune.sampling import Sampling


def test_default_is_greedy() -> None:
    assert Sampling().options() == {"do_sample": False, "repetition_penalty": 1.0}
    # What would be warned of, or do nothing, is not passed on.
    assert Sampling(top_p=0.5, repetition_penalty=1.1).options() == {"do_sample": False, "repetition_penalty": 1.1}


def test_drawing() -> None:
    assert Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2).options() == {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "repetition_penalty": 1.2,
    }


@pytest.mark.parametrize(
    "fine",
    [
        {"temperature": 10},
        {"temperature": 0},
        {"top_p": 1},
        {"top_p": 0.01},
        {"repetition_penalty": 0.1},
        {"repetition_penalty": 10},
        {"max_new_tokens": 1},
        {"seed": 0},
        {"seed": 1234},
        {"seed": 2**63 - 1},
    ],
)
def test_within_range(fine: dict[str, Any]) -> None:
    Sampling(**fine)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("temperature", [-0.1, 10.1, math.nan, math.inf]),
        ("top_p", [0, -1, 1.01, math.nan]),
        ("repetition_penalty", [0, -1, 10.1, math.nan, math.inf]),
        ("max_new_tokens", [0, -5]),
        ("seed", [-1, 2**63]),
    ],
)
def test_out_of_range(option: str, values: list[Any]) -> None:
    for value in values:
        flag = f"--{option.replace('_', '-')}"
        with pytest.raises(YiTuneError, match=rf"Out of range: {flag} {re.escape(str(value))} \(takes ") as caught:
            Sampling(**{option: value})
        assert caught.value.hint


def test_all_that_is_out_of_range_is_named_at_once() -> None:
    with pytest.raises(YiTuneError) as caught:
        Sampling(temperature=-1, top_p=2, repetition_penalty=1, max_new_tokens=0)
    assert re.findall(r"--[\w-]+", caught.value.message) == ["--temperature", "--top-p", "--max-new-tokens"]
