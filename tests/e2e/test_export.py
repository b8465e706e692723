"""What is exported from the main job's run, loaded as other programs load it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import Done, Trained
from tests.hubs.models import YI_TOKENIZER, sharded, yi_tokenizer
from yi_tune import loading
from yi_tune.export import CHAT_TEMPLATE, Export, export, plan_export, read_record
from yi_tune.exported import ExportedScore, check_exported
from yi_tune.heldout import Score, questions, score
from yi_tune.identity import Identity, Message
from yi_tune.models import CATALOGUE
from yi_tune.progress import Progress
from yi_tune.runs import Run
from yi_tune.screen import err

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

NANO = CATALOGUE["nano"].path(Path())
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "你是谁？"}],
    [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Who made you?"}],
    [
        {"role": "system", "content": "请用中文回答。"},
        {"role": "user", "content": "2加3等于几？"},
        {"role": "assistant", "content": "等于5。"},
        {"role": "user", "content": " And  who\n\nare you? 🚀 "},
    ],
]


@pytest.fixture(scope="module")
def hf(trained: Trained) -> tuple[Path, Done]:
    """The default export, and what the command printed."""
    done = trained.yi_tune("export", "--json")
    assert done.status == 0, done.err
    return Path(json.loads(done.out)["exported"]), done


def planned(trained: Trained, folder: Path, quant: Any) -> Export:
    run = Run(trained.run)
    return plan_export(run, loading.run_config(run), folder, quant, trained.folder)


@pytest.fixture(scope="module")
def checked(
    trained: Trained, hf: tuple[Path, Done], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportedScore]:
    """Each format's answers to the held-out questions, by plain transformers."""
    folders = {"hf": hf[0]}
    for quant in ("f16", "q8_0", "q4_0"):
        plan = planned(trained, tmp_path_factory.mktemp("export") / quant, quant)
        export(plan, force=False)
        folders[quant] = plan.target
        size = sum(path.stat().st_size for path in plan.target.iterdir())
        assert size < plan.bytes < size + 8_000_000
    return {name: check_exported(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def assistant(trained: Trained) -> "Assistant":
    """The run as `chat` loads it, on the base in 4 bits."""
    return loading.load(loading.run_config(Run(trained.run)))


@pytest.fixture(scope="module")
def in_16_bits(trained: Trained) -> Any:
    """The base in 16 bits with the run's adapter beside it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(NANO, dtype="auto"), str(trained.run)).eval()


@pytest.fixture(scope="module")
def chat(trained: Trained, assistant: "Assistant") -> Score:
    """What `chat` answers to the held-out questions; the base is not asked."""
    identity = Identity(**Run(trained.run).record["identity"])
    return score(questions(), identity, lambda asked: [""] * len(asked), assistant.reply_all)


@pytest.fixture(scope="module")
def beside(chat: Score, assistant: "Assistant", in_16_bits: Any) -> list[str]:
    """What the base in 16 bits answers with the adapter beside it."""
    ask: Callable[[list[list[Message]]], list[str]] = assistant.reply_all
    tuned, assistant.model = assistant.model, in_16_bits
    try:
        return [answer.tuned for answer in score(questions(), chat.identity, lambda asked: [""] * len(asked), ask).answers]
    finally:
        assistant.model = tuned


def agreement(score: Score, replies: list[str]) -> float:
    assert len(score.answers) == len(replies) >= 100
    return sum(answer.tuned == reply for answer, reply in zip(score.answers, replies, strict=True)) / len(replies)


@pytest.mark.parametrize(("exported", "merged", "chats"), [("hf", 0.98, 0.95), ("f16", 0.98, 0.95), ("q8_0", 0.95, 0.93)])
def test_answers(
    exported: str, merged: float, chats: float, checked: dict[str, ExportedScore], chat: Score, beside: list[str]
) -> None:
    """As the 16-bit base with the adapter beside it; `chat` itself answers from a base in 4 bits."""
    found = checked[exported]
    assert agreement(found.score, beside) >= merged
    assert agreement(found.score, [answer.tuned for answer in chat.answers]) >= chats
    for lang in ("zh", "en"):
        own, exports = chat.recall(lang), found.score.recall(lang)
        assert own is not None
        assert exports is not None
    own, exports = chat.recall(), found.score.recall()
    assert own is not None
    assert exports is not None
    assert abs(own - exports) <= 0.02
    # By its own generation_config, or what GGUF says: no reply runs on.
    assert found.unfinished == 0
