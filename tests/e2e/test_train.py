"""Training for real: the main job, its run folder, and what happens when it is cut short."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Done, SmallDisk, Trained, Workspace

# Long enough to be killed halfway, short enough to be done five times.
SHORT = ("--set", "max_samples=80", "--set", "num_train_epochs=2")


def test_main_job(trained: Trained) -> None:
    assert trained.done.status == 0, trained.done.err
    # What the user reads: answers side by side, a score, where things are, what to type next.
    for wanted in (
        "小易",
        "Yi-nano",
        "identity questions right",
        "training_loss.png",
        "report.html",
        "yi-tune chat",
        "yi-tune check",
    ):
        assert wanted in trained.done.out
    assert f"report:         {trained.run / 'report.html'}" in trained.done.out
    assert "step " in trained.done.err
    assert "INFO|" not in trained.done.err + trained.done.out


def test_run_folder(trained: Trained) -> None:
    run = trained.run
    for file in ("run.json", "train.yaml", "chat.yaml", "report.json", "report.html", "train.log", "training_loss.png"):
        assert (run / file).stat().st_size > 0
    record = json.loads((run / "run.json").read_text())
    assert record["identity"] == {"name": "小易", "author": "李雷", "name_en": "小易", "author_en": "李雷"}
    assert yaml.safe_load((run / "train.yaml").read_text()) == record["config"]
    assert record["config"]["quantization_bit"] == 4
    assert "quantization_bit" not in yaml.safe_load((run / "chat.yaml").read_text())
    report = json.loads((run / "report.json").read_text())
    assert {"recall", "leak", "kept", "answers", "loss"} <= report.keys()
    # LLaMA-Factory's own output is here and nowhere else.
    assert "llamafactory" in (run / "train.log").read_text()
    # Nothing is reported that nobody asked for.
    assert not (run / "runs").exists()


def test_transformers_loads_the_run_folder(trained: Trained) -> None:
    from transformers import AutoModelForCausalLM

    names = [name for name, _ in AutoModelForCausalLM.from_pretrained(trained.run).named_parameters()]
    assert any("lora_" in name for name in names)


def test_finished_run_is_listed(trained: Trained) -> None:
    listed = trained.runs()["identity"]
    assert (listed["model"], listed["name"], listed["state"]) == ("nano", "小易", "finished")
    assert listed["step"] == listed["steps"] == trained.log_history()[-1]["step"]
    assert listed["recall"] == json.loads((trained.run / "report.json").read_text())["recall"]
    assert 0 < listed["loss"] < 1
    assert 0 < listed["eval_loss"] < 1
    assert listed["created"] < listed["ended"]


def test_llamafactory_trains_the_run_as_it_is(trained: Trained, tmp_path: Path) -> None:
    config = yaml.safe_load((trained.run / "train.yaml").read_text())
    config |= {"output_dir": str(tmp_path / "again"), "max_samples": 16, "num_train_epochs": 1.0}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [Path(sys.executable).parent / "llamafactory-cli", "train", "train.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "again" / "adapter_model.safetensors").exists()


def test_the_tutorials_config(workspace: Workspace) -> None:
    done = workspace.train("--config", "tutorial", "--set", "max_samples=16", "--set", "num_train_epochs=1")
    assert done.status == 0, done.err
    config = yaml.safe_load((workspace.run / "train.yaml").read_text())
    assert (config["fp16"], config["per_device_train_batch_size"], config["preprocessing_num_workers"]) == (True, 1, 16)
    assert "bf16" not in config
    # Two steps teach nobody a name, and that is said before anything else.
    assert done.out.startswith("It does not know its name yet")


def test_finished_run_is_not_touched(trained: Trained) -> None:
    before = {file: file.stat().st_mtime_ns for file in trained.run.rglob("*") if file.name != ".lock"}
    same = trained.train()
    other = trained.train("--set", "learning_rate=1e-5")
    assert (same.status, other.status) == (1, 1)
    assert "finished already" in same.err
    assert "learning_rate: " in other.err
    assert "1e-05" in other.err
    for done in (same, other):
        assert "--fresh" in done.err
        assert "Traceback" not in done.err
    assert before == {file: file.stat().st_mtime_ns for file in trained.run.rglob("*") if file.name != ".lock"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A short run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = Workspace(folder).train(*SHORT)
    assert done.status == 0, done.err
    return Workspace(folder)


def same_training(one: Workspace, other: Workspace) -> bool:
    """Whether two runs had the same loss at every step."""
    losses = [[log["loss"] for log in workspace.log_history() if "loss" in log] for workspace in (one, other)]
    return losses[0] == losses[1]


# 80 rows less a tenth, in batches of 8, twice: 18 steps, a checkpoint every 5 and at the end.
def test_killed_and_stopped_run_resumes_to_the_same_loss(workspace: Workspace, unbroken: Workspace) -> None:
    for number, seen in (
        (signal.SIGTERM, lambda: workspace.steps() >= 2),
        (signal.SIGKILL, (workspace.run / "checkpoint-10").exists),  # while it saves
        (signal.SIGKILL, lambda: workspace.steps() >= 18),
    ):
        before = workspace.steps()
        done = workspace.train_until_seen(seen, number, *SHORT)
        gone_on = re.search(r"from checkpoint-(\d+)\.", done.err)
        assert before - int(gone_on[1] if gone_on else 0) <= 5  # what is lost is one save interval at most
        assert workspace.runs()["identity"]["state"] == "interrupted"
        if number == signal.SIGKILL:
            assert done.status == -number
        else:
            assert done.status == 130
            assert "same command" in done.err
            assert "Traceback" not in done.err
    # What another kill left.
    (workspace.run / "checkpoint-99").mkdir()
    (workspace.run / "checkpoint-99" / "adapter_model.safetensors").write_bytes(b"half")
    resumed = workspace.train(*SHORT)
    assert resumed.status == 0, resumed.err
    assert "checkpoint-99 is broken (.safetensors is missing or cut short), and removed." in resumed.err
    assert "Going on with the run 'identity' from checkpoint-" in resumed.err
    # Had it gone on from half a checkpoint, the losses would not be the same.
    assert same_training(workspace, unbroken)
    losses = [json.loads((done.run / "report.json").read_text())["loss"] for done in (workspace, unbroken)]
    assert losses[0] == pytest.approx(losses[1])


def test_fresh_leaves_nothing_old_and_chat_goes_on_in_the_same_process(
    workspace: Workspace, unbroken: Workspace
) -> None:
    def files() -> set[str]:
        return {path.name for pattern in ("checkpoint-*", "data/*") for path in workspace.run.glob(pattern)}

    shutil.copytree(unbroken.run, workspace.run)
    old = files()
    tiny = ("--set", "max_samples=16", "--set", "num_train_epochs=1", "--author", "韩梅梅")
    fresh = workspace.train(*tiny, "--fresh", "--chat", stdin="3加5等于几？\n/exit\n")
    assert fresh.status == 0, fresh.err
    assert files() & old <= {"dataset_info.json"}
    assert "8" in fresh.out.split("Measure it all")[1]


def test_two_at_once(workspace: Workspace) -> None:
    long = ("--set", "num_train_epochs=99")
    first = workspace.start("train", "--model", "nano", "--name", "小易", "--author", "李雷", *long)
    deadline = time.monotonic() + 120
    while not workspace.steps() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for command in (("train", "--model", "nano", "--name", "a", "--author", "b"), ("runs", "rm", "identity", "--yes")):
        refused = workspace.yi_tune(*command)
        assert refused.status == 1
        assert "Another process" in refused.err
        assert "--run" in refused.err
    assert workspace.runs()["identity"]["state"] == "running"
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "same command" in said
    assert "Traceback" not in said


def test_full_disk(small_disk: SmallDisk, unbroken: Workspace) -> None:
    disk = small_disk("3m")
    # Room for a checkpoint, not for two.
    full = Workspace(disk).train(*SHORT)
    assert full.status == 1
    assert "is full" in full.err
    assert "Traceback" not in full.err
    assert {path.name for path in Workspace(disk).run.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-10"}
    # Whether there was room for failure.json or not.
    assert Workspace(disk).runs()["identity"]["state"] in ("failed", "interrupted")
    subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    again = Workspace(disk).train(*SHORT)
    assert again.status == 0, again.err
    assert "checkpoint-10 is broken" in again.err
    assert "from checkpoint-5." in again.err
    assert same_training(Workspace(disk), unbroken)


def test_adapter_that_does_not_fit(trained: Trained, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(trained.run, tmp_path / "saves" / "nano" / "other")
    weights = tmp_path / "saves" / "nano" / "other" / "adapter_model.safetensors"
    save_file({name: tensor[..., :-1].copy() for name, tensor in load_file(weights).items()}, weights)
    done: Done = Workspace(tmp_path).yi_tune("chat", "--prompt", "hi")
    assert done.status == 1
    assert "The model does not load" in done.err
    assert "Traceback" not in done.err
