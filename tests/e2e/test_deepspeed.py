"""Two processes that divide training by DeepSpeed's ZeRO, on a CPU: `make test-deepspeed` installs it first."""

import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import Workspace
from tests.e2e.test_several import SHORT_OF_MEMORY, TWO, ended, losses, start, wait_for

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="make test-deepspeed runs these")

ZERO2, ZERO3 = (*TWO, "--shard", "zero2"), (*TWO, "--shard", "zero3", "--config", "lora")


def shapes(run: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in load_file(run / "adapter_model.safetensors").items()}


@pytest.fixture(scope="module")
def zero2(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run of two processes with ZeRO-2 that nothing disturbed."""
    folder = tmp_path_factory.mktemp("two of") / "my workspace"
    folder.mkdir()
    done = Workspace(folder).train(*ZERO2)
    assert done.status == 0, done.err
    assert "ZeRO-2 divides the gradients and the optimiser among all; each has all weights." in done.err
    assert "identity questions right" in done.out
    return Workspace(folder)


def test_as_without(zero2: Workspace, workspace: Workspace) -> None:
    done = workspace.train(*TWO)
    assert done.status == 0, done.err
    # ZeRO computes with an adapter in 16 bits.
    assert losses(zero2)[:2] == pytest.approx(losses(workspace)[:2], abs=5e-3)
    assert losses(zero2)[-1] == pytest.approx(losses(workspace)[-1], rel=0.05)
    assert shapes(zero2.run) == shapes(workspace.run)
    record = json.loads((zero2.run / "run.json").read_text())
    assert (record["sharding"], record["gpus"]) == ("zero2", 2)
    assert "DS_ACCELERATOR=cpu llamafactory-cli" in (zero2.run / "train.yaml").read_text()
    assert not list((Path.home() / ".cache" / "torch_extensions").rglob("*shm_comm*"))
    refused = workspace.train(*ZERO2)
    assert (refused.status, "sharding: None -> zero2" in refused.err) == (1, True)


def test_lost_worker_and_stopped_run_go_on_to_the_same_loss(zero2: Workspace, workspace: Workspace) -> None:
    process = start(workspace, *ZERO2)
    workers = wait_for(workspace, 7, process)
    workers[1].kill()
    assert ended(workers)
    workers = wait_for(workspace, 6, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "A worker was lost. Going on from checkpoint-5." in said
    assert ended(workers)
    stopped = workspace.steps()
    files = {file.name for file in (workspace.run / f"checkpoint-{stopped}" / f"global_step{stopped}").iterdir()}
    assert len([name for name in files if name.endswith("optim_states.pt")]) == 2
    resumed = workspace.train(*ZERO2)
    assert resumed.status == 0, resumed.err
    assert f"from checkpoint-{stopped}." in resumed.err
    assert losses(workspace) == losses(zero2)
    ours, theirs = ((of.run / "adapter_model.safetensors").read_bytes() for of in (workspace, zero2))
    assert ours == theirs


def test_out_of_memory_on_one_is_smaller_steps_on_all(zero2: Workspace, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
    workspace = Workspace(tmp_path)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = workspace.train(*ZERO2, env={**os.environ, "PYTHONPATH": path})
    assert done.status == 0, done.err
    assert "Going on from checkpoint-5 with per_device_train_batch_size 2, gradient_accumulation_steps 2" in done.err
    assert losses(workspace)[5] == pytest.approx(losses(zero2)[5], abs=1e-2)


def test_zero3_leaves_a_whole_adapter(zero2: Workspace, workspace: Workspace) -> None:
    done = workspace.train(*ZERO3)
    assert done.status == 0, done.err
    assert shapes(workspace.run) == shapes(zero2.run)
    last = workspace.run / "checkpoint-18"
    assert len(list(last.glob("global_step18/zero_pp_rank_*_model_states.pt"))) == 2
    tuned, kept = (load_file(folder / "adapter_model.safetensors") for folder in (workspace.run, last))
    assert all(tuned[name].equal(kept[name]) for name in tuned)
    assert all(tensor.any() for tensor in tuned.values())
    assert "--run identity" in done.out
