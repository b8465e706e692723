"""Exported GGUF in llama.cpp itself: `make test-llamacpp` compiles it, which takes some minutes."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.e2e.conftest import Trained
from tests.e2e.test_export import write
from tests.hubs.models import YI_TOKENIZER, downloaded_yi
from yi_tune import loading
from yi_tune.data.heldout import questions, score
from yi_tune.data.identity import Identity, Message, read_jsonl
from yi_tune.export import Quant, check_exported, export, plan_export
from yi_tune.files import DATA
from yi_tune.runs import Run

PYTHON = os.environ.get("LLAMACPP_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="make test-llamacpp runs these")

TEXTS = [
    "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in row["messages"])
    for file in ("identity.jsonl", "heldout.jsonl")
    for row in read_jsonl(DATA / file)
]
TEXTS += ["<|im_start|>user\n你是谁？ 12 + 345 =  é 小 a b。Ω<|im_end|>\n", "Söhne 🚀 don't I'll 100%"]


def ask(file: Path, texts: list[str], chats: list[list[Message]]) -> dict[str, Any]:
    """Token ids of the texts, and (reply, finish reason) of the conversations, by llama.cpp."""
    assert PYTHON is not None
    asked = json.dumps({"file": str(file), "texts": texts, "chats": chats})
    script = Path(__file__).with_name("llamacpp.py")
    done = subprocess.run([PYTHON, script], input=asked, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def quantiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's own quantiser on the PATH."""
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{PYTHON}" "{Path(__file__).with_name("llama_quantize.py")}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.mark.parametrize("quant", get_args(Quant))
@pytest.mark.usefixtures("quantiser")
def test_it_knows_who_it_is_and_stops(trained: Trained, tmp_path: Path, quant: Any) -> None:
    from transformers import AutoTokenizer

    run = Run(trained.run)
    plan = plan_export(run, loading.base_config(run), tmp_path / "export", quant, trained.folder)
    export(plan, force=False)
    assert [path.name for path in plan.target.glob("*.gguf")] == [plan.gguf]
    size = (plan.target / plan.gguf).stat().st_size
    assert size < plan.bytes
    finishes: list[str] = []
    found: dict[str, Any] = {}

    def answer(conversations: list[list[Message]]) -> list[str]:
        found.update(ask(plan.target / plan.gguf, TEXTS, conversations))
        finishes.extend(finish for _, finish in found["replies"])
        return [reply for reply, _ in found["replies"]]

    scored = score(questions(), Identity(**run.record["identity"]), lambda asked: [""] * len(asked), answer)
    print(f"{quant}: {size:,} bytes, recall {scored['recall']:.3f} in llama.cpp")
    assert scored["recall"] >= (0.9 if quant.startswith("q4") else 0.95)
    assert finishes.count("stop") == len(scored["answers"])
    if quant == "q4_k_m":  # which transformers reads too
        assert check_exported(plan.target)["recall"] == pytest.approx(scored["recall"], abs=0.03)
    tokenizer = AutoTokenizer.from_pretrained(plan.base)
    assert found["ids"] == [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]


@pytest.mark.skipif(not YI_TOKENIZER.is_dir(), reason=f"the real Yi tokenizer is not at {YI_TOKENIZER}")
def test_the_real_yi_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "Yi"
    downloaded_yi(base)
    write(base, None, tmp_path / "yi.gguf", "f16")
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert ask(tmp_path / "yi.gguf", TEXTS, [])["ids"] == expected
    # transformers takes 20 s to load it, which is why this stands here and not in test_export.py.
    loaded = AutoTokenizer.from_pretrained(tmp_path, gguf_file="yi.gguf")
    assert [loaded(text, add_special_tokens=False).input_ids for text in TEXTS] == expected
