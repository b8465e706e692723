"""When memory runs out; the engine is a fake. For real: tests/e2e/test_fit.py."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from tests.plans import plan
from tests.test_checkpoints import checkpoint
from yi_tune import launch
from yi_tune import train as training
from yi_tune.config import read_config
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.meeting import Nodes
from yi_tune.plan.fit import Fit
from yi_tune.plan.settings import TrainPlan
from yi_tune.progress import Progress
from yi_tune.runs import write_configs
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


def several(planned: TrainPlan, monkeypatch: pytest.MonkeyPatch, outcomes: list[BaseException | None]) -> list[int]:
    """A run of two workers whose starts end so, one after the other; returns the rows of a step at each of them."""
    rows: list[int] = []

    def train(planned: TrainPlan, checkpoint: Path | None, progress: Progress) -> None:
        config = read_config(planned.run.folder / "train.yaml")
        rows.append(2 * config["per_device_train_batch_size"] * config["gradient_accumulation_steps"])
        if outcome := outcomes.pop(0):
            raise outcome

    engine(monkeypatch, lambda config: pytest.fail("one process trains"))
    loaded = ModuleType("yi_tune.engine.assistant")
    loaded.load_assistant = lambda config: config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, loaded.__name__, loaded)
    monkeypatch.setattr(launch, "train", train)
    write_configs(planned.run, planned.record | {"gpus": 2}, planned.chat_config, {})
    return rows


TWO = Hardware(None, bf16=True, free=20_000_000_000, count=2)


def test_several_halve_together_and_go_on_when_one_is_lost(planned: TrainPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = replace(
        planned, fit=Fit(4, 1, False, TWO), settings=planned.settings | {"per_device_train_batch_size": (4, "", "")}
    )
    rows = several(planned, monkeypatch, [launch.WorkerLostError(), OutOfMemoryError("no"), None])
    console = Console(record=True, width=300)
    chat = train_within_memory(planned, None, Progress(console))
    assert chat == planned.chat_config
    assert rows == [8, 8, 8]
    said = console.export_text()
    assert "A worker was lost. Going on from the start." in said
    assert "Going on from the start with per_device_train_batch_size 2, gradient_accumulation_steps 2" in said
    assert json.loads((planned.run.folder / "run.json").read_text())["gpus"] == 2


def test_a_worker_that_is_lost_again_and_again(planned: TrainPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = replace(planned, fit=Fit(4, 1, False, TWO))
    several(planned, monkeypatch, [launch.WorkerLostError(), launch.WorkerLostError()])
    with pytest.raises(
        YiTuneError, match="One of 2 workers was lost twice, each time when it had gone on from the start"
    ):
        train_within_memory(planned, None, Progress(Console()))


@pytest.mark.parametrize("fresh", [False, True])
def test_machines_that_do_not_meet_change_nothing_of_the_run(
    fresh: bool, planned: TrainPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = planned.run.folder
    for name in ("checkpoint-5", "data"):
        (folder / name).mkdir()
        (folder / name / "cut short").touch()
    for name in ("failure.json", "report.html", "train.log", "run.json.part", ".lock"):
        (folder / name).write_text('"It was the disk."')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    alone = replace(
        planned,
        nodes=Nodes(2, 1, "no-such-machine.invalid", 1),
        settings=planned.settings
        | {"per_device_train_batch_size": (4, "", ""), "gradient_accumulation_steps": (2, "", "")},
    )
    with pytest.raises(YiTuneError, match="The machines do not meet"):
        training.run(alone, fresh=fresh)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_machines_that_meet_go_on_from_what_all_have_whole(planned: TrainPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[set[str]] = []

    def meet(nodes: Nodes, record: dict[str, Any], checkpoints: set[str]) -> tuple[str, dict[str, Any]]:
        met.append(checkpoints)
        return "checkpoint-5", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}

    started: list[Any] = []

    def train(planned: TrainPlan, checkpoint: Path | None, progress: Progress) -> None:
        started.append((checkpoint, read_config(planned.run.folder / "train.yaml")["per_device_train_batch_size"]))
        raise YiTuneError("enough")

    for step in (5, 10, 15):
        checkpoint(planned.run.folder, step)
    (planned.run.folder / "checkpoint-15" / "optimizer.pt").unlink()
    planned = replace(planned, nodes=Nodes(2, 1, "host", 1), fit=Fit(8, 1, False, replace(TWO, count=1, nodes=2)))
    several(planned, monkeypatch, [])
    monkeypatch.setattr(launch, "train", train)
    monkeypatch.setattr(training, "meet", meet)
    for fresh, whole in ((False, {"checkpoint-5", "checkpoint-10"}), (True, set())):
        planned.run.write("run.json", json.dumps(planned.record))
        with pytest.raises(YiTuneError, match="enough"):
            training.run(planned, fresh=fresh)
        assert met.pop() == whole
        assert started.pop() == (planned.run.folder / "checkpoint-5", 4)


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


def test_failure_has_a_page(planned: TrainPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        if "page" in broken:
            planned.run.page.with_name("report.html.part").mkdir()
        raise RuntimeError("the wheels came off <b>")

    broken: set[str] = set()
    tokenizer = ModuleType("yi_tune.engine.tokenizer")
    tokenizer.warn_of_tokenizer = lambda *_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, tokenizer.__name__, tokenizer)
    monkeypatch.setattr(training, "_train", fails)
    (planned.run.folder / "chat.yaml").unlink()
    with pytest.raises(YiTuneError, match="the wheels came off"):
        training.run(planned, fresh=False)
    page = planned.run.page.read_text(encoding="utf-8")
    assert "The training failed." in page
    assert "the wheels came off &lt;b&gt;" in page
    # Which is told even where the page cannot be written.
    broken.add("page")
    with pytest.raises(YiTuneError, match="the wheels came off"):
        training.run(planned, fresh=True)
