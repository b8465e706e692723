"""`yi-tune serve --engine vllm` with a real vLLM: `make test-vllm VLLM=folder` names the folder of its command."""

import json
import os
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Trained
from tests.e2e.test_serve import until
from yi_tune.data.heldout import questions, score
from yi_tune.data.identity import Identity, Message

VLLM = os.environ.get("VLLM")
pytestmark = pytest.mark.skipif(not VLLM, reason="make test-vllm VLLM=folder runs this")


@pytest.mark.parametrize("what", ["--exported", "--run"])
def test_vllm_says_who_it_is(what: str, trained: Trained, tmp_path: Path) -> None:
    which = "identity"
    if what == "--exported":
        which = str(tmp_path / "export")
        done = trained.yi_tune("export", "--to", which)
        assert done.status == 0, done.err
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    path = f"{VLLM}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("w") as log:
        process = trained.start(
            *["serve", "--engine", "vllm", what, which, "--port", str(port), "--api-key", "k"],
            env=os.environ | {"PATH": path, "VLLM_CPU_KVCACHE_SPACE": "1"},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}/v1"
    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)

    def models() -> list[str]:
        with suppress(openai.APIConnectionError):
            return [model.id for model in client.models.list().data]
        return []

    try:
        assert until(lambda: process.poll() is not None or models(), 300), (tmp_path / "log").read_text()[-4000:]
        assert models() == (["identity"] if what == "--exported" else ["nano", "identity"])
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="other").models.list()
        ends: Counter[str] = Counter()

        def ask(messages: list[Message]) -> str:
            given: Any = messages
            choice = client.chat.completions.create(model="identity", messages=given, temperature=0).choices[0]
            ends[choice.finish_reason] += 1
            return (choice.message.content or "").strip()

        def ask_all(conversations: list[list[Message]]) -> list[str]:
            with ThreadPoolExecutor(8) as several:
                return list(several.map(ask, conversations))

        scored = score(questions(), Identity("小易", "李雷"), lambda asked: [""] * len(asked), ask_all)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    its_own = json.loads(trained.yi_tune("check", what, which, "--json").out)["answers"]
    pairs = zip(scored["answers"], its_own, strict=True)
    same = sum(vllms["tuned"] == ours["tuned"] for vllms, ours in pairs) / len(its_own)
    print(f"vLLM {what}: recall {scored['recall']:.3f}, {same:.3f} of the replies are yi-tune's, {dict(ends)}")
    assert scored["recall"] >= 0.95
    assert same >= 0.95
    assert set(ends) == {"stop"}
