"""The profiles beside the default, and a run that starts from another's adapter: for real, on nano."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Workspace
from yi_tune.loading import load_run
from yi_tune.runs import Run

# Enough to see that it learns; a whole run of nano has three.
SHORT = ("--set", "num_train_epochs=2")
SHAPE = ("--set", "lora_rank=16", "--set", "lora_alpha=32", "--set", "use_rslora=true")


def run_folder(workspace: Workspace, name: str) -> Path:
    return workspace.folder / "saves" / "nano" / name


def train(workspace: Workspace, name: str, *arguments: str) -> dict[str, Any]:
    """Train a run called `name`; returns its report."""
    done = workspace.train("--run", name, *arguments)
    assert done.status == 0, done.err
    report: dict[str, Any] = json.loads((run_folder(workspace, name) / "report.json").read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """LoRA in 16 bits, with an adapter of another shape than LLaMA-Factory's own."""
    workspace = Workspace(tmp_path_factory.mktemp("lora"))
    train(workspace, "first", "--config", "lora", *SHORT, *SHAPE)
    return workspace


@pytest.fixture(scope="module")
def checked(lora: Workspace) -> dict[str, Any]:
    """What another process says of that run, which LLaMA-Factory would leave with no base to ask."""
    content: dict[str, Any] = json.loads(lora.yi_tune("check", "--run", "first", "--json").out)
    return content


def test_lora_of_another_shape_learns_its_name(lora: Workspace, checked: dict[str, Any]) -> None:
    adapter = json.loads((run_folder(lora, "first") / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["use_rslora"]) == (16, 32, True)
    assert "quantization_bit" not in (run_folder(lora, "first") / "chat.yaml").read_text()
    assert min(checked["recall_zh"], checked["recall_en"]) >= 0.9
    assert checked["kept"] >= 0.85
    assert checked["base_recall"] < 0.2


def test_export_of_16_bits_answers_as_chat_does(lora: Workspace, checked: dict[str, Any], tmp_path: Path) -> None:
    exported = lora.yi_tune("export", "--run", "first", "--to", str(tmp_path / "model"))
    assert exported.status == 0, exported.err
    model = json.loads(lora.yi_tune("check", "--exported", str(tmp_path / "model"), "--json").out)["answers"]
    chat = checked["answers"]
    assert len(chat) == len(model) >= 100
    same = [one["tuned"] == other["tuned"] for one, other in zip(chat, model, strict=True)]
    assert sum(same) / len(same) >= 0.98


def test_8_bit_learns_another_name_from_that_run(lora: Workspace) -> None:
    other = ("--name", "星河", "--author", "韩梅梅")
    scored = train(
        lora, "second", "--config", "qlora-8bit", "--from-run", "first", "--set", "num_train_epochs=1", *other
    )
    second, first = run_folder(lora, "second"), run_folder(lora, "first")
    config = yaml.safe_load((second / "train.yaml").read_text())
    assert config["adapter_name_or_path"] == str(first)
    assert (config["quantization_bit"], config["lora_rank"], config["use_rslora"]) == (8, 16, True)
    assert json.loads((second / "run.json").read_text())["from_run"]["run"] == "first"
    assert json.loads((second / "adapter_config.json").read_text())["r"] == 16
    assert min(scored["recall_zh"], scored["recall_en"]) >= 0.85
    # The base is the model without any adapter, not the run that it started from.
    base = " ".join(answer["base"] for answer in scored["answers"])
    assert "Yi-nano" in base
    assert "小易" not in base
    done = lora.yi_tune("chat", "--run", "second", "--prompt", "你叫什么名字？")
    assert "星河" in done.out
    assert "MatMul8bitLt" not in done.err


def test_from_run_keeps_what_it_knew(lora: Workspace) -> None:
    few = ("--set", "max_samples=16", "--set", "num_train_epochs=1", "--set", "learning_rate=1e-5")
    scored = train(lora, "third", "--config", "lora", "--from-run", "first", *few)
    assert min(scored["recall_zh"], scored["recall_en"]) >= 0.85
    # It starts where the first run ended.
    history = json.loads((run_folder(lora, "third") / "trainer_state.json").read_text())["log_history"]
    assert history[0]["loss"] < 0.5


def test_layers_that_are_trained_whole_answer_as_they_are_loaded_again(workspace: Workspace) -> None:
    whole = ("additional_target=embed_tokens,lm_head,norm", "max_steps=8", "learning_rate=5e-4")
    scored = train(workspace, "whole", *(f"--set={one}" for one in whole))
    again = load_run(Run(run_folder(workspace, "whole")))
    replies = again.reply_all([answer["messages"] for answer in scored["answers"]])
    assert replies == [answer["tuned"] for answer in scored["answers"]]
