from typing import Any

import pytest

from yi_tune.errors import YiTuneError
from yi_tune.plan.early_stop import SETTINGS, check_validation, is_aligned

STOPS = {key: value for key, (value, _) in SETTINGS.items()}


@pytest.mark.parametrize(
    ("config", "datasets"),
    [
        ({"val_size": 0.1}, [398]),
        ({"val_size": 0.05}, [398]),  # 19.9 of which datasets makes 20
        ({"val_size": 20}, [21]),
        ({"val_size": 0.1, "max_samples": 100}, [398, 5000]),  # max_samples is of each
    ],
)
def test_enough_validation_rows(config: dict[str, Any], datasets: list[int]) -> None:
    check_validation(STOPS | config, datasets)


@pytest.mark.parametrize(
    ("config", "datasets", "said"),
    [
        ({"val_size": 0.1}, [100], "val_size=0.1 holds back 10 of 100"),
        ({"val_size": 0.1, "max_samples": 80}, [398], "val_size=0.1 holds back 8 of 80"),
        ({"val_size": 19}, [398], "val_size=19 holds back 19 of 398"),
        ({}, [398], "val_size=0 holds back 0 of 398"),
        ({"val_size": None}, [398], "val_size=0 holds back 0 of 398"),
    ],
)
def test_too_few_validation_rows(config: dict[str, Any], datasets: list[int], said: str) -> None:
    with pytest.raises(YiTuneError, match="needs 20 validation rows") as caught:
        check_validation(STOPS | config, datasets)
    assert said in caught.value.message
    assert "--set val_size=20" in caught.value.hint


def test_without_early_stop_any_share_will_do() -> None:
    check_validation({"val_size": 0.01}, [10])


@pytest.mark.parametrize("val_size", [1, 10, 100_000])
def test_a_row_is_left_to_train_on(val_size: int) -> None:
    with pytest.raises(YiTuneError, match="none is left"):
        check_validation({"val_size": val_size}, [10])
    check_validation({"val_size": 9}, [10])


@pytest.mark.parametrize(
    ("config", "aligned"),
    [
        ({"eval_strategy": "steps", "eval_steps": 0.05, "save_steps": 0.05}, True),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3}, True),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.25}, False),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_steps": 20}, True),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_steps": 25}, False),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_steps": 0.5}, False),
        ({"eval_strategy": "steps", "eval_steps": 0.5, "save_steps": 10}, False),
        ({"eval_strategy": "steps", "logging_steps": 100}, True),
        ({"eval_strategy": "steps", "eval_steps": "often"}, True),  # wrong, but not so
        ({"eval_strategy": "steps", "eval_steps": 0.0, "logging_steps": 0}, False),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, True),
        ({"eval_strategy": "epoch"}, False),
        ({"eval_strategy": "epoch", "save_strategy": "best"}, True),
        ({}, False),
    ],
)
def test_what_is_evaluated_is_saved(config: dict[str, Any], aligned: bool) -> None:
    assert is_aligned(config) is aligned
