import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpus, scale
from tests.plans import plan
from yi_tune import train as training
from yi_tune.config import find_config, read_config
from yi_tune.data.general import replay_prompts
from yi_tune.data.identity import Identity, render
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, Shape, find_model
from yi_tune.output import spell
from yi_tune.plan.duration import RATES, cost, micro_step, padded, rate_of
from yi_tune.plan.fit import Fit, choose_fit, row_lengths
from yi_tune.progress import Progress

QLORA = read_config(find_config("qlora"))
A100 = "NVIDIA A100-SXM4-40GB"
SIX = CATALOGUE["yi-1.5-6b-chat"].shape
assert SIX


def test_rate_of_a_gpu() -> None:
    for name, words in (
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "RTX 3090|A10|A10G|L4"),
        ("NVIDIA L40S", "L40S|A6000"),
        ("NVIDIA RTX A6000", "L40S|A6000"),
        (A100, "A100"),
        ("NVIDIA H200", "H100|H200|GH200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060"),
    ):
        assert rate_of(name) is RATES[words]
    for name in ("NVIDIA RTX A1000", "NVIDIA GeForce RTX 5090"):
        assert "none is known" in rate_of(name).source


@pytest.mark.parametrize("row", gpus.TIMED, ids=lambda row: f"{row.gpu} {row.model} {row.bits} {row.tokens}")
def test_published_times(row: gpus.Timed) -> None:
    assert row.forecast == pytest.approx(row.seconds, rel=0.03 if "wiki" in row.source else 0.3)


@pytest.mark.parametrize("script", [gpus, scale])
def test_the_page_is_what_the_script_writes(script: Any) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page()


def test_padding() -> None:
    lengths = [10, 90] * 200
    # In order of length one micro-batch of a window has both lengths; otherwise nearly all have.
    assert sum(padded(lengths, 8, 1, grouped=True)) < 1.1 * (200 * 16 + 200 * 96)
    assert sum(padded(lengths, 8, 1, grouped=False)) > 1.6 * (200 * 16 + 200 * 96)
    for grouped in (True, False):
        assert sorted(padded(lengths, 1, 8, grouped=grouped)) == [16] * 200 + [96] * 200
    assert list(padded([30] * 10, 4, 2, grouped=True)) == [128, 128, 64]


def test_grouping_is_transformers() -> None:
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [(7 * at) % 97 + 8 for at in range(1000)]
    order = get_length_grouped_indices(lengths, 8, generator=torch.Generator().manual_seed(1))
    theirs = [8 * -(-max(lengths[row] for row in order[at : at + 4]) // 8) * 4 for at in range(0, 1000, 4)]
    assert sum(padded(lengths, 4, 2, grouped=True)) == pytest.approx(sum(theirs), rel=0.02)


def seconds(shape: Shape, rows: int = 80, gpu: str | None = A100, **config: Any) -> float:
    return cost(shape, {"quantization_bit": 4, **config}, [100] * rows, gpu, (8, 1, True))


def test_time_of_a_run() -> None:
    step = micro_step(SIX, 8 * 104, rate_of(A100), quantised=True, checkpointing=True)
    assert seconds(SIX, num_train_epochs=2.0) == pytest.approx(2 * 10 * step)
    assert seconds(SIX, num_train_epochs="many") == seconds(SIX)  # the checks of the config report it
    assert seconds(SIX) == pytest.approx(3 * 10 * step)  # LLaMA-Factory's own epochs
    assert seconds(SIX, max_steps=5) == pytest.approx(5 * step)
    assert seconds(SIX, quantization_bit=None) < seconds(SIX)
    assert seconds(SIX, gpu="Tesla T4") > 5 * seconds(SIX)


def test_few_tokens_take_no_less_than_their_launches() -> None:
    few, more, many = (
        micro_step(SIX, tokens, rate_of("NVIDIA H100"), quantised=False, checkpointing=True)
        for tokens in (8, 64, 1 << 14)
    )
    assert few == more < many / 5


def test_nano_on_a_cpu_has_one_micro_batch(tmp_path: Path) -> None:
    nano = find_model("nano", tmp_path)
    lengths = row_lengths(nano, QLORA, render(Identity("小易", "李雷")), replay_prompts(64))
    fit = choose_fit(nano.shape, QLORA, lengths, Hardware(None, bf16=True, free=20_000_000_000))
    assert (fit.micro_batch, fit.accumulation, fit.checkpointing) == (8, 1, False)
    assert fit.seconds is None
    assert fit.forecast == "Time: not estimated; the progress tells it after the first steps."


def test_forecast_of_a_gpu() -> None:
    fit = choose_fit(SIX, QLORA, [40] * 400, Hardware(A100, bf16=True, free=40_000_000_000))
    assert fit.seconds
    assert fit.forecast == (
        f"Time: about {spell(fit.seconds)} of training, estimated from figures of LLaMA-Factory's wiki for an A100."
    )
    assert "not estimated" in choose_fit(None, QLORA, [40], Hardware(A100, bf16=True, free=1)).forecast


def cards(count: int, name: str | None = A100) -> Hardware:
    return Hardware(name, bf16=True, free=40_000_000_000, count=count)


def test_several_gpus_are_forecast_beside_one() -> None:
    # Rows that keep a GPU busy are done in half the time by two; few short ones, whose kernels take as long to start
    # whatever is in them, are not done any sooner.
    long, short = ([1000] * 3000, [30] * 300)
    one = choose_fit(SIX, QLORA, long, cards(1))
    two = choose_fit(SIX, QLORA, long, cards(2))
    assert (two.rows, two.alone) == (8, one.cost)
    assert two.cost == pytest.approx(one.cost / 2, rel=0.1)
    assert f"{spell(two.cost)} of training, {spell(one.cost)} on one GPU, estimated" in two.forecast
    assert "gain nothing" not in two.forecast
    few = choose_fit(SIX, QLORA, short, cards(4))
    assert few.cost > 0.7 * few.alone
    assert few.forecast.endswith("\n4 GPUs gain nothing here: to start them costs more. Better leave out --gpus.")
    assert "no faster than one" in choose_fit(SIX, QLORA, short, cards(2, None)).forecast


@pytest.mark.parametrize("gpu", [A100, None])
def test_what_training_took_is_told_beside_the_forecast(
    gpu: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = Fit(8, 1, False, Hardware(gpu, bf16=True, free=1), SIX, cost=600.0)
    planned = plan(path=tmp_path, run=tmp_path / "run", datasets=(), fit=fit)

    def resumed(_: Any, common: Any, progress: Progress) -> Any:
        """A quarter of the steps is done before, and the process has a clock of its own."""
        progress.get_time = iter(range(100, 10**6, 100)).__next__
        progress.begin(8, 2)
        for step in range(3, 9):
            progress.step(step)
        asked: dict[str, Any] = {"identity": False, "answers": []}
        return None, asked | dict.fromkeys(("recall_zh", "recall_en", "base_recall", "kept"))

    monkeypatch.setattr(training, "_train", resumed)
    training.run(planned, fresh=True)
    report = json.loads(planned.run.report.read_text())
    assert report["seconds"] > 600
    said = f"Training took {spell(report['seconds'])}" + ("; 8 min were estimated." if gpu else ".")
    assert said in capsys.readouterr().out.splitlines()
    assert report["estimated_seconds"] == (450 if gpu else None)


def test_spelled() -> None:
    assert [spell(time) for time in (0.4, 64, 560, 5000, 9000)] == ["0 s", "64 s", "9 min", "83 min", "2.5 h"]
