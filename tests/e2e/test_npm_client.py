"""The API with OpenAI's JavaScript client before it: `make test-npm` installs that."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Trained
from tests.e2e.test_serve import ENDLESS, Server, until

MODULES = os.environ.get("NPM_MODULES")
pytestmark = pytest.mark.skipif(MODULES is None, reason="make test-npm runs this")


def test_npm_client(trained: Trained) -> None:
    assert MODULES is not None
    server = Server(trained)
    command = ["node", str(Path(__file__).with_name("openai_client.cjs")), server.url, json.dumps(ENDLESS)]
    done = subprocess.run(
        command, env=os.environ | {"NODE_PATH": MODULES}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["identity", "nano"]
    assert "小易" in found["text"]
    assert found["finish"] == "stop"
    assert found["tokens"] > 5
    # Floats of a batch are rounded otherwise than alone, which may turn a close decision.
    assert sum(one["text"] == found["text"] for one in found["together"]) >= 30
    assert min(one["pieces"] for one in found["together"]) > 3
    assert found["refused"] == [
        {"kind": "NotFoundError", "status": 404, "code": "model_not_found"},
        {"kind": "BadRequestError", "status": 400, "code": "invalid_value"},
    ]
    assert found["left"] == "chat.completion.chunk"
    assert until(lambda: server.health()["running"] == 0, 1)
    assert server.end(signal.SIGTERM).status == 0
