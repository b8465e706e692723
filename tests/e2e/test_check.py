"""Does the tuned nano know who it is, and still what it knew? All held-out questions and general prompts."""

import gc
import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import Trained, Workspace
from yi_tune.data.general import check_prompts, introduces_base, replay_prompts
from yi_tune.data.heldout import questions, score
from yi_tune.data.identity import Identity, to_jsonl
from yi_tune.loading import chat_config, find, run_config
from yi_tune.sampling import Generation

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

# As many as docs/replay.md shows to be enough for nano.
REPLAY = ("--replay", "192")


@pytest.fixture(scope="module")
def checked(trained: Trained) -> dict[str, Any]:
    """What `check --json` says of the main job's run; its exit status is that of the recall."""
    done = trained.yi_tune("check", "--json", "--min-recall", "1")
    checked: dict[str, Any] = json.loads(done.out)
    assert done.status == (min(checked["recall_zh"], checked["recall_en"]) < 1), done.err
    return checked


def tuned_of(workspace: Workspace) -> "Assistant":
    """The tuned model of the workspace's run, with the base beneath it."""
    from yi_tune.engine.assistant import load_assistant

    return load_assistant(run_config(find(workspace.folder, None, None)))


@pytest.fixture(scope="module")
def base_replies(trained: Trained) -> list[Generation]:
    """The base's answers to the general prompts, but those in which it introduces itself."""
    assistant = tuned_of(trained)
    with assistant.base():
        replies = assistant.greedy([prompt.messages for prompt in check_prompts()])
    return [reply for reply in replies if not introduces_base(reply.text)]


def test_the_main_pair(checked: dict[str, Any]) -> None:
    assert min(checked["recall_zh"], checked["recall_en"]) >= 0.95
    assert checked["leak"] <= 0.05
    assert checked["kept"] >= 0.95
    # Before, it knew nothing of that name.
    assert checked["base_recall"] < 0.2
    assert sum(row["asked"] for row in checked["kinds"]) == len(checked["answers"]) >= 60
    assert {"lang", "kind", "messages", "base", "tuned", "base_right", "right", "leaks"} == checked["answers"][0].keys()


def test_two_processes_answer_as_one(trained: Trained, checked: dict[str, Any]) -> None:
    done = trained.yi_tune("check", "--json", "--device", "cpu", "--gpus", "2")
    assert (done.status, "Asking base and tuned model in 2 workers" in done.err) == (0, True), done.err
    both = json.loads(done.out)
    assert both["general"]["kl"] == pytest.approx(checked["general"]["kl"], abs=1e-4)
    both["general"]["kl"] = checked["general"]["kl"]
    assert both == checked


def test_general_answers(checked: dict[str, Any]) -> None:
    general = checked["general"]
    assert 0.01 < general["kl"] < 1
    assert [answer["prompt"] for answer in general["answers"]] == [prompt.prompt for prompt in check_prompts()]
    assert general["mentions"] == sum(answer["mentions"] for answer in general["answers"]) / len(general["answers"])
    assert general["base_mentions"] == 0


def test_result_is_kept_and_shown(trained: Trained, checked: dict[str, Any]) -> None:
    assert checked["page"] == str(trained.run / "report.html")
    page = (trained.run / "report.html").read_text(encoding="utf-8")
    assert f"{checked['general']['kl']:.4f}" in page
    assert "To know them" not in page
    told = json.loads(trained.yi_tune("runs", "show", "identity", "--json").out)
    assert told["unknown"] == []
    assert told["check"]["answers"] == checked["answers"]
    assert len(told["losses"]) == told["steps"]
    compared = json.loads(trained.yi_tune("runs", "compare", "identity", "identity", "--json").out)
    assert compared["settings"] == {}
    assert compared["measures"]["kl"] == [checked["general"]["kl"]] * 2


def test_replay(workspace: Workspace, checked: dict[str, Any], base_replies: list[Generation]) -> None:
    # Stopped and gone on with: the base is asked once.
    stopped = workspace.train_until(3, signal.SIGINT, *REPLAY)
    assert stopped.status == 130, stopped.err
    assert "Asking the base model" in stopped.err
    kept = (workspace.run / "replay.jsonl").read_bytes()
    done = workspace.train(*REPLAY)
    assert done.status == 0, done.err
    assert "Asking the base model" not in done.err
    said = re.search(
        r"Training on (\d+) of the base's 192 answers: ([\d,]+) target tokens beside the identity's ([\d,]+)", done.err
    )
    assert said, done.err
    rows, replay, identity = (int(number.replace(",", "")) for number in said.groups())
    assert 0 < replay <= identity
    assert json.loads((workspace.run / "report.json").read_text())["target_tokens"] == {
        "replay": replay,
        "identity": identity,
    }
    assert (workspace.run / "replay.jsonl").read_bytes() == kept
    (dataset,) = workspace.run.glob("data/replay-*.jsonl")
    answers = [json.loads(line)["messages"][-1]["content"] for line in dataset.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == rows >= 96
    assert not any(map(introduces_base, answers))
    # What it is for, by the numbers of `check`.
    from yi_tune.engine.divergence import mean_kl

    replayed = tuned_of(workspace)
    assert mean_kl(replayed, base_replies) <= checked["general"]["kl"] / 2
    scored = score(questions(), Identity("小易", "李雷"), lambda asked: [""] * len(asked), replayed.reply_all)
    assert min(scored["recall_zh"], scored["recall_en"]) >= 0.9


def test_two_processes_replay_as_one(workspace: Workspace, trained: Trained) -> None:
    from yi_tune.engine.divergence import ask_base

    kept = workspace.run / "replay.jsonl"
    two = ("--replay", "80", "--device", "cpu", "--gpus", "2")
    stopped = workspace.train_until_seen(kept.exists, signal.SIGINT, *two)
    assert stopped.status == 130, stopped.err
    one = ask_base(chat_config(trained.folder, "identity", None, base=True), replay_prompts(80), 1024)
    assert kept.read_text(encoding="utf-8") == to_jsonl(one)


def test_divergence_is_what_the_definition_says(
    trained: Trained, checked: dict[str, Any], base_replies: list[Generation]
) -> None:
    import torch

    from yi_tune.engine.assistant import load_assistant
    from yi_tune.engine.divergence import mean_kl

    assistant = tuned_of(trained)
    # Nano does not come to an end of "Is a strawberry red or blue?".
    assert sum(reply.finish != "stop" for reply in base_replies) <= 1
    # By hand: a reply at a time, without padding, over every token.
    divergences = []
    with torch.inference_mode():
        for reply in base_replies:
            ids = torch.tensor([reply.prompt + reply.tokens])
            tuned = assistant.model(ids).logits[0].double().softmax(-1)
            with assistant.base():
                base = assistant.model(ids).logits[0].double().softmax(-1)
            each = (tuned * (tuned / base).log()).sum(-1)
            divergences += each[len(reply.prompt) - 1 : -1].tolist()
    expected = sum(divergences) / len(divergences)
    assert mean_kl(assistant, base_replies) == pytest.approx(expected, rel=0.05)
    assert checked["general"]["kl"] == pytest.approx(expected, rel=0.05)
    # Nothing is as near to the base as the base.
    base = load_assistant(chat_config(trained.folder, "identity", None, base=True))
    assert mean_kl(base, base_replies) == 0


def test_the_base_is_unloaded_before_training() -> None:
    from transformers import PreTrainedModel

    from yi_tune.engine.divergence import ask_base

    def models() -> int:
        return sum(issubclass(type(thing), PreTrainedModel) for thing in gc.get_objects())

    gc.collect()
    before = models()
    config = chat_config(Path(), None, "nano", base=True)
    answers = ask_base(config, check_prompts()[:4], cutoff_len=1024)
    assert [answer["finished"] for answer in answers] == [True] * 4
    assert models() == before
    # A limit that no answer fits leaves none finished.
    assert not any(answer["finished"] for answer in ask_base(config, check_prompts()[:4], cutoff_len=8))
