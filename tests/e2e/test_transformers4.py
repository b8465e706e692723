"""Exports as transformers 4 reads them: `make test-exports` installs it beside the locked one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Trained
from tests.e2e.test_export import CONVERSATIONS, NANO, write
from tests.hubs.models import YI_TOKENIZER, downloaded_yi
from yi_tune import loading
from yi_tune.data.heldout import questions
from yi_tune.data.identity import Message
from yi_tune.runs import Run

PYTHON = os.environ.get("TRANSFORMERS4_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="make test-exports runs these")

TEXTS = [
    "<|im_start|>user\n你是谁？ 12 + 345 =  é 小 a b。Ω<|im_end|>\n",
    "Söhne 🚀 don't I'll 100%",
    " And  who\n\nare you?",
]


def ask(python: str | None, folder: Path, chats: list[list[Message]]) -> dict[str, Any]:
    """What the model in `folder` is and says to that Python's transformers."""
    assert python is not None
    asked = json.dumps({"folder": str(folder), "texts": TEXTS, "chats": chats})
    script = Path(__file__).with_name("plain.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, script], input=asked, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def same(folder: Path, chats: list[list[Message]]) -> dict[str, Any]:
    """What transformers 4 finds in `folder`, which is what transformers 5 does."""
    ours, theirs = ask(sys.executable, folder, chats), ask(PYTHON, folder, chats)
    assert theirs["transformers"].startswith("4.57.")
    assert theirs["rope_theta"] == pytest.approx(5_000_000, rel=1e-4)
    for one, other in zip(ours.pop("logits"), theirs.pop("logits"), strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    assert ours | {"transformers": "", "rope_theta": 0} == theirs | {"transformers": "", "rope_theta": 0}
    return theirs


def test_tuned_run(trained: Trained, tmp_path: Path) -> None:
    done = trained.yi_tune("export", "--to", str(tmp_path / "export"))
    assert done.status == 0, done.err
    asked = [question.messages for question in questions()[:8]]
    found = same(tmp_path / "export", [*CONVERSATIONS, *asked])
    assert found["dtype"] == "torch.bfloat16"
    assert found["replies"][3:] == loading.load_run(Run(trained.run)).reply_all(asked)
    assert "小易" in found["replies"][0]


def test_nano_itself() -> None:
    same(NANO, CONVERSATIONS)


@pytest.mark.skipif(not YI_TOKENIZER.is_dir(), reason=f"the real Yi tokenizer is not at {YI_TOKENIZER}")
def test_the_real_yi_tokenizer(tmp_path: Path) -> None:
    downloaded_yi(tmp_path / "Yi")
    write(tmp_path / "Yi", None, tmp_path / "export")
    same(tmp_path / "export", CONVERSATIONS)


def test_tokenizer_that_transformers_5_saved(tmp_path: Path) -> None:
    """With its extra tokens in a list, and a class that 4 does not have."""
    from transformers import AutoTokenizer

    base, folder = tmp_path / "base", tmp_path / "export"
    shutil.copytree(NANO, base)
    AutoTokenizer.from_pretrained(NANO, extra_special_tokens=["<|im_start|>", "<|im_sep|>"]).save_pretrained(base)
    saved = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["tokenizer_class"] == "TokenizersBackend"
    assert isinstance(saved["extra_special_tokens"], list)
    write(base, None, folder)
    same(folder, CONVERSATIONS)
