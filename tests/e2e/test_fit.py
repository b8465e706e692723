"""Memory for real: the estimate beside what a process takes, steps divided otherwise, and memory that runs out."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bench.memory import compare
from bench.pages import ROOT
from tests.e2e.conftest import Workspace

SHAPES = ("8x1", "8x1-evaluated", "2x4")
# After two steps the process gets 330 MB more than it has. The logits and their gradients take 12 bytes a word and
# token: 390 MB with eight rows of 64 tokens, and most batches have a longer one. When it goes on the limit is lifted,
# because all that the allocator keeps for later counts too: in time any step would run into it.
LIMITED = """
import resource, sys, weakref
from pathlib import Path
from transformers import TrainerCallback
from yi_tune import cli
from yi_tune.engine import trainer as engine

class Limit(TrainerCallback):
    model = None

    def on_train_begin(self, args, state, control, model, **_):
        if Limit.model:
            Path("first").write_text("freed" if Limit.model() is None else "held")
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step == 2 and not Limit.model:
            Limit.model = weakref.ref(model)
            status = dict(line.split(":") for line in open("/proc/self/status"))
            data = int(status["VmData"].split()[0]) * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (data + 330_000_000, resource.RLIM_INFINITY))

run_exp = engine.run_exp
engine.run_exp = lambda args, callbacks: run_exp(args, [*callbacks, Limit()])
cli.main()
"""


def test_the_same_training_however_a_step_is_divided_and_evaluated(tmp_path: Path) -> None:
    losses = {}
    for shape in SHAPES:
        micro, accumulation = shape.split("-")[0].split("x")
        # 63 rows are trained on: the last step has seven.
        sets = ["max_samples=70", "num_train_epochs=1", "save_strategy=no", "eval_steps=1"]
        sets += [f"per_device_train_batch_size={micro}", f"gradient_accumulation_steps={accumulation}"]
        sets += [f"eval_strategy={'steps' if 'evaluated' in shape else 'no'}"]
        done = Workspace(tmp_path).train("--run", shape, *(f"--set={one}" for one in sets))
        assert done.status == 0, done.err
        run = tmp_path / "saves" / "nano" / shape
        history = json.loads((run / "trainer_state.json").read_text())["log_history"]
        losses[shape] = [log["loss"] for log in history if "loss" in log]
        assert len(losses[shape]) == 8
        assert losses[shape][-1] == pytest.approx(losses["8x1"][-1], rel=0.005)
    # bitsandbytes packs 4-bit layers in an evaluation, on CPUs with AVX512-BF16: gradients would no longer pass.
    assert losses["8x1-evaluated"] == losses["8x1"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with Yi's words and hardly anything else, its weights random."""
    folder = tmp_path_factory.mktemp("random") / "tiny"
    subprocess.run([sys.executable, "-m", "bench.random_model", "tiny", folder], cwd=ROOT, check=True)
    return folder


def test_estimate_is_within_a_fifth_of_what_it_takes(tiny: Path, tmp_path: Path) -> None:
    """Of nano, see test_scripts.py."""
    estimated, measured = compare(str(tiny), 8, tmp_path)
    assert estimated == pytest.approx(measured, rel=0.2)


def test_out_of_memory_goes_on_in_smaller_steps(tiny: Path, tmp_path: Path) -> None:
    train = ["train", "--model", str(tiny), "--name", "小易", "--author", "李雷", "--replay", "0", "--run", "short"]
    sets = ["max_samples=80", "num_train_epochs=1", "save_steps=2", "save_total_limit=9", "use_cpu=true"]
    train += [part for value in sets for part in ("--set", value)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *train], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Out of memory\. Going on from checkpoint-[24] with per_device_train_batch_size 4", done.stderr)
    assert (tmp_path / "first").read_text() == "freed"
    run = tmp_path / "saves" / "tiny" / "short"
    record = json.loads((run / "run.json").read_text())["config"]
    assert (record["per_device_train_batch_size"], record["gradient_accumulation_steps"]) == (4, 2)
    assert yaml.safe_load((run / "train.yaml").read_text()) == record
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [log["step"] for log in history if "loss" in log] == list(range(1, 10))


def test_memory_shown_of_a_gpu_is_that_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what the base took for its answers, in the same process."""
    import torch

    from yi_tune.engine.trainer import Reporter

    peak, shown = [20_000_000_000], []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", peak.clear)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: sum(peak))
    reporter = Reporter(SimpleNamespace(begin=lambda *_: None, figures=lambda _, memory: shown.append(memory)))  # type: ignore[arg-type]
    args = SimpleNamespace(device=torch.device("cuda"), fp16=False, world_size=1)
    state = SimpleNamespace(best_model_checkpoint=None, stateful_callbacks={}, max_steps=9, global_step=0)
    reporter.on_train_begin(args, state, None, model=torch.nn.Linear(1, 1), processing_class=None)
    peak.append(9_000_000_000)
    reporter.on_log(args, state, None, logs={})
    assert shown == [9_000_000_000]
