"""When memory runs out; the engine is a fake. For real: tests/e2e/test_fit.py."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from tests.plans import plan
from yi_tune import train as training
from yi_tune.config import read_config
from yi_tune.errors import YiTuneError
from yi_tune.plan.plan import TrainPlan
from yi_tune.progress import Progress
from yi_tune.train import train_within_memory


class OutOfMemoryError(MemoryError):
    pass


@pytest.fixture
def planned(tmp_path: Path) -> TrainPlan:
    """A run of nano that is ready to start, in micro-batches of 8."""
    planned = plan(path=tmp_path, run=tmp_path / "run", datasets=())
    planned.run.folder.mkdir()
    planned.run.write("run.json", json.dumps(planned.record))
    planned.run.write("chat.yaml", "template: yi\n")
    return planned


def engine(monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any]) -> list[dict[str, Any]]:
    """An engine that trains so; returns the configs that it is given."""
    configs: list[dict[str, Any]] = []

    def noted(config: dict[str, Any], *rest: Any) -> Any:
        configs.append(config)
        return train(config)

    fake = ModuleType("yi_tune.engine.trainer")
    fake.OutOfMemoryError, fake.train = OutOfMemoryError, noted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return configs


def test_halves_until_it_fits(planned: TrainPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: dict[str, Any]) -> str:
        if config["per_device_train_batch_size"] > 2:
            raise OutOfMemoryError("no")
        return "assistant"

    configs = engine(monkeypatch, train)
    console = Console(record=True, width=300)
    assert train_within_memory(planned, None, Progress(console)) == "assistant"
    divided = [(config["per_device_train_batch_size"], config["gradient_accumulation_steps"]) for config in configs]
    assert divided == [(8, 1), (4, 2), (2, 4)]
    said = console.export_text()
    assert "Going on from the start with per_device_train_batch_size 2, gradient_accumulation_steps 4" in said
    assert json.loads((planned.run.folder / "run.json").read_text())["config"] == configs[-1]
    assert read_config(planned.run.folder / "train.yaml") == configs[-1]


def test_below_one_row_is_an_error(planned: TrainPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: dict[str, Any]) -> Any:
        raise OutOfMemoryError("tried to allocate 20 GiB")

    configs = engine(monkeypatch, train)
    with pytest.raises(YiTuneError, match="Out of memory: tried to allocate 20 GiB") as caught:
        training.run(planned, fresh=True)
    assert "cutoff" in caught.value.hint
    # 8, 4, 2, 1, and with gradient checkpointing.
    assert len(configs) == 5
    assert configs[-1]["disable_gradient_checkpointing"] is False


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_before_or_after_training(
    error: Exception, planned: TrainPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: dict[str, Any]) -> None:
        raise error

    engine(monkeypatch, train)
    with pytest.raises(YiTuneError, match="Out of memory: ") as caught:
        training.run(planned, fresh=True)
    assert "type the same command" in caught.value.hint
