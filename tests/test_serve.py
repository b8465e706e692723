"""The API's shapes, refusals and limits, with an engine that says what it is told to."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from yi_tune.cli import app
from yi_tune.data.identity import Message
from yi_tune.errors import YiTuneError
from yi_tune.files import CHAT_TEMPLATE
from yi_tune.runs import Run
from yi_tune.sampling import Generation, Piece, Sampling
from yi_tune.serve import server, vllm
from yi_tune.serve.app import Names, create_app
from yi_tune.serve.server import MAX_BODY
from yi_tune.serve.worker import Worker

ROOT = Path(__file__).parents[1]
NAMES = Names("mine", "nano")
HELLO: dict[str, Any] = {"model": "mine", "messages": [{"role": "user", "content": "hello"}]}


class FakeEngine(Worker):
    """A token a character; replies with `pieces`, at once, or refuses."""

    alive = True

    def __init__(self) -> None:
        self.context = 100
        self.encode = self._encode
        self.asked: list[Generation] = []
        self.chats: list[list[Message]] = []
        self.pieces = [Piece("Hi", 1), Piece(" there", 2), Piece("", 3, "stop")]
        self.full = False

    def counts(self) -> tuple[int, int]:
        return 0, 0

    def _encode(self, messages: list[Message]) -> list[int]:
        self.chats.append(messages)
        return [1] * sum(len(message["content"]) for message in messages)

    def submit(self, generation: Generation) -> bool:
        if self.full:
            return False
        self.asked.append(generation)
        if generation.stream:
            for piece in self.pieces:
                generation.emit(piece)
        elif self.pieces[-1].finish:
            generation.emit(Piece("".join(piece.text for piece in self.pieces), *self.pieces[-1][1:]))
        return True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    """A client of an app without a key."""
    return TestClient(create_app(engine, NAMES), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def error(response: Any, status: int) -> dict[str, Any]:
    """The error of a response, which has OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    return dict(response.json()["error"])


def test_chat(client: TestClient, engine: FakeEngine) -> None:
    body = client.post("/v1/chat/completions", json=HELLO).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "mine"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi there", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    (asked,) = engine.asked
    # Greedy, as `yi-tune chat` is; as long as the context has room for.
    assert (asked.sampling, asked.base) == (Sampling(top_p=1.0, max_new_tokens=95), False)


def events(response: Any) -> list[Any]:
    """The events of a streamed response, the last of which is [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *data, end = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert end == "[DONE]"
    return [json.loads(one) for one in data]


def test_stream(client: TestClient) -> None:
    asked = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(client.post("/v1/chat/completions", json=asked))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {"content": " there"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 8)
    without = events(client.post("/v1/chat/completions", json={**HELLO, "stream": True}))
    assert all("usage" not in chunk for chunk in [*chunks, *without])


def test_sampling(client: TestClient, engine: FakeEngine) -> None:
    fields = {"model": "nano", "seed": -1, "temperature": 1, "top_p": 0, "max_tokens": 7, "stop": "x"}
    assert client.post("/v1/chat/completions", json={**HELLO, **fields}).status_code == 200
    (asked,) = engine.asked
    assert (asked.base, asked.stop) == (True, ["x"])
    assert asked.sampling == Sampling(1.0, 1e-6, max_new_tokens=7, seed=2**63 - 1)


def test_failure_is_told(client: TestClient, engine: FakeEngine) -> None:
    engine.pieces = [Piece("Hi", 1), Piece("", 1, "error")]
    assert error(client.post("/v1/chat/completions", json=HELLO), 500)["type"] == "server_error"
    streamed = client.post("/v1/chat/completions", json={**HELLO, "stream": True}).text
    assert json.loads(streamed.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["type"] == "server_error"


def test_full(client: TestClient, engine: FakeEngine) -> None:
    engine.full = True
    for stream in (False, True):
        response = client.post("/v1/chat/completions", json={**HELLO, "stream": stream})
        assert error(response, 429)["code"] == "rate_limit_exceeded"
        assert response.headers["retry-after"] == "1"


def test_models(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["mine", "nano"]
    assert client.get("/v1/models/nano").json()["object"] == "model"
    assert error(client.get("/v1/models/other"), 404)["code"] == "model_not_found"
    assert error(client.post("/v1/chat/completions", json={**HELLO, "model": "gpt-4o"}), 404)["code"] == (
        "model_not_found"
    )


def test_health(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    monkeypatch.setattr(FakeEngine, "alive", False)
    assert client.get("/health").status_code == 503


def test_other_paths(client: TestClient) -> None:
    assert "Invalid URL" in error(client.get("/v1/embeddings"), 404)["message"]
    wrong = client.get("/v1/chat/completions")
    error(wrong, 405)
    assert wrong.headers["allow"] == "POST"
    error(client.post("/v1/completions", json={"model": "mine", "prompt": "x"}), 404)
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def says(role: Any, content: Any = "x") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


REFUSED: list[tuple[str, list[Any]]] = [
    ("temperature", [2.1, "1"]),
    ("top_p", [-0.1]),
    ("presence_penalty", [0.1]),
    ("frequency_penalty", [-2]),
    ("max_tokens", [0, True]),
    ("n", [2]),
    ("stop", [["a"] * 5, "", 5]),
    ("top_k", [5]),
    ("logprobs", [True]),
    ("tools", [[{"type": "function"}]]),
    ("tool_choice", ["required"]),
    ("response_format", [{"type": "json_object"}]),
    ("logit_bias", [{"1": 1}]),
    ("messages", [[], ["x"]]),
]
NO_CONVERSATION = [
    says("user", [{"type": "text"}]),
    says("user", [{"type": "image_url", "image_url": {"url": "http://x"}}]),
    says(["user"]),
    says("tool"),
    says("assistant"),
    says("system"),
    {"messages": [{"role": "user"}]},
    {"messages": [*says("user")["messages"], *says("system")["messages"]]},
    {"max_tokens": 96},
]


def test_refused(client: TestClient, engine: FakeEngine) -> None:
    cases = [(name, {name: value}) for name, values in REFUSED for value in values]
    for param, fields in [*cases, *(("messages", fields) for fields in NO_CONVERSATION)]:
        assert error(client.post("/v1/chat/completions", json={**HELLO, **fields}), 400)["param"] == param, fields
    assert not engine.asked
    said = error(client.post("/v1/chat/completions", json={**HELLO, "max_tokens": 96}), 400)
    assert (said["code"], "context length is 100 tokens" in said["message"]) == ("context_length_exceeded", True)


def test_taken(client: TestClient) -> None:
    for fields in (
        {"presence_penalty": 0, "frequency_penalty": 0.0, "temperature": 0, "seed": -1, "stop": None, "n": 1},
        {"max_completion_tokens": 95, "tools": [], "logprobs": False, "response_format": {"type": "text"}},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True, "of next year": 1},
        says("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
    ):
        assert client.post("/v1/chat/completions", json={**HELLO, **fields}).status_code == 200


def test_conversation_as_the_template_has_it(client: TestClient, engine: FakeEngine) -> None:
    sent = [("system", "a"), ("developer", "b"), ("user", "c"), ("user", "d"), ("assistant", None), ("user", "e")]
    messages = [{"role": role, "content": content} for role, content in sent]
    assert client.post("/v1/chat/completions", json={**HELLO, "messages": messages}).status_code == 200
    assert [(message["role"], message["content"]) for message in engine.chats[0]] == [
        ("system", "a\n\nb"),
        ("user", "c\n\nd"),
        ("assistant", ""),
        ("user", "e"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "mine", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "mine", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
    ],
)
def test_bodies_that_are_none(content: bytes, client: TestClient) -> None:
    error(client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"}), 400)
    plain = client.post("/v1/chat/completions", content=json.dumps(HELLO), headers={"content-type": "text/plain"})
    assert "application/json" in error(plain, 400)["message"]


@pytest.mark.parametrize("content", [b"x" * (MAX_BODY + 1), (b"x" * 65536 for _ in range(40))])
def test_body_is_bounded(content: Any, client: TestClient) -> None:
    error(client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"}), 413)


def test_body_that_never_ends_is_given_up(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.1)
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"1000")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": headers}
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": b'{"model":', "more_body": True}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(create_app(engine, NAMES)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["type"] == "invalid_request_error"


def test_key(engine: FakeEngine) -> None:
    client = TestClient(create_app(engine, NAMES, "secret"), base_url="http://example.org")
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "secret"},
        {"authorization": b"Bearer \xe9"},
    ):
        for path in ("/v1/models", "/v1/none", "/openapi.json"):
            assert error(client.get(path, headers=headers), 401)["code"] == "invalid_api_key"
        error(client.post("/v1/chat/completions", json=HELLO, headers=headers), 401)
    assert not engine.asked
    assert client.get("/health").status_code == 200
    mine = {"authorization": "Bearer secret"}
    assert client.get("/openapi.json", headers=mine).status_code == 200
    assert client.post("/v1/chat/completions", json=HELLO, headers=mine).status_code == 200


def test_names_of_the_server(client: TestClient) -> None:
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.1.2.3"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example", "", "[::1"):
        assert error(client.get("/v1/models", headers={"host": host}), 403)["code"] == "unknown_host"


def test_origins(client: TestClient, engine: FakeEngine) -> None:
    own, other = {"origin": "http://127.0.0.1:8000"}, {"origin": "https://example.org"}
    assert client.post("/v1/chat/completions", json=HELLO, headers=own).status_code == 200
    for origin in ("https://example.org", "null", "http://127.0.0.1:8001", "http://[::1"):
        refused = client.post("/v1/chat/completions", json=HELLO, headers={"origin": origin})
        assert error(refused, 403)["code"] == "unknown_origin"
        assert "access-control-allow-origin" not in refused.headers
    allowing = TestClient(create_app(engine, NAMES, None, ("https://example.org",)), base_url="http://localhost")
    answered = allowing.post("/v1/chat/completions", json=HELLO, headers=other)
    assert answered.status_code == 200
    assert answered.headers["access-control-allow-origin"] == "https://example.org"
    preflight = {**other, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert allowing.options("/v1/chat/completions", headers=preflight).status_code == 200
    error(allowing.get("/v1/models", headers={"origin": "https://evil.example"}), 403)


def test_page(client: TestClient, engine: FakeEngine) -> None:
    error(client.get("/"), 404)  # only if wanted
    client = TestClient(create_app(engine, NAMES, "secret", page=True), base_url="http://example.org")
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript"), ("/icon.svg", "svg")):
        answered = client.get(path)
        assert answered.status_code == 200
        assert kind in answered.headers["content-type"]
        policy = answered.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
    page = client.get("/").text
    assert not re.search(r"https?:|<script>|<style|style=|\son\w+=", page)
    error(client.get("/../app.py"), 404)
    error(client.get("/page/index.html"), 404)


# Where it listens, and with what key


def test_key_is_made_where_others_can_ask() -> None:
    assert server.choose_key("127.0.0.1", None) is None
    assert server.choose_key("127.0.0.1", "k") == "k"
    made = [server.choose_key(host, None) for host in ("0.0.0.0", "::", "192.168.1.2", "")]  # noqa: S104
    assert all(key and len(key) >= 32 for key in made)
    assert len({*made}) == len(made)
    for wrong in ("", " ", "é", "a\nb", " a"):
        with pytest.raises(YiTuneError, match="API key"):
            server.choose_key("127.0.0.1", wrong)


def test_port_in_use() -> None:
    with server.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert server.url(first) == f"http://127.0.0.1:{port}"
        with socket.create_connection(first.getsockname()), first.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with pytest.raises(
            YiTuneError, match=f"127.0.0.1:{port} cannot be listened on: Address already in use"
        ) as said:
            server.listen("127.0.0.1", port)
        assert "--port" in said.value.hint
    with pytest.raises(YiTuneError, match="cannot be listened on: Name"):
        server.listen("no.such.host.invalid", 0)
    if socket.has_ipv6:
        with server.listen("::1", 0) as sixth:
            assert server.url(sixth).startswith("http://[::1]:")


# vLLM


def test_vllm_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "mine")
    run.folder.mkdir()
    monkeypatch.setattr(Run, "record", {"model_path": "/models/Yi-1.5-6B-Chat"})
    (run.folder / "adapter_config.json").write_text('{"r": 12}')
    config = {"model_name_or_path": "/models/Yi-1.5-6B-Chat", "quantization_bit": 4}
    monkeypatch.setattr("yi_tune.loading.run_config", lambda _: config)
    line = vllm.serve_run(run)
    ends = run.folder / "vllm"
    assert line == [
        *["vllm", "serve", "/models/Yi-1.5-6B-Chat", "--served-model-name", "Yi-1.5-6B-Chat"],
        *["--enable-lora", "--max-lora-rank", "16"],
        *["--lora-modules", json.dumps({"name": "mine", "path": str(run.folder)})],
        *["--chat-template", str(CHAT_TEMPLATE), "--generation-config", str(ends)],
    ]
    assert shlex.split(vllm.shown(line, None)) == line
    # It lets nobody in who was not named.
    assert " ".join(vllm.listening("::", 80, ())) == "--host :: --port 80 --allowed-origins [] --disable-fastapi-docs"
    assert '["https://a.org"]' in vllm.listening("127.0.0.1", 8000, ("https://a.org",))
    assert json.loads((ends / "generation_config.json").read_text())["eos_token_id"] == [2, 6, 7, 8]
    # Where chat answers in 4 bits, vLLM's answers are not quite the same.
    assert "chat in 4" in capsys.readouterr().err


def test_vllm_serves_an_export(tmp_path: Path) -> None:
    record = {"run": "mine", "identity": {}, "gguf": "", "files": []}
    (tmp_path / "export.json").write_text(json.dumps(record))
    assert vllm.serve_export(tmp_path) == ["vllm", "serve", str(tmp_path), "--served-model-name", "mine"]
    (tmp_path / "export.json").write_text(json.dumps(record | {"gguf": "mine-f16.gguf"}))
    with pytest.raises(YiTuneError, match="is GGUF") as said:
        vllm.serve_export(tmp_path)
    assert "--format hf" in said.value.hint
    with pytest.raises(YiTuneError, match="no export"):
        vllm.serve_export(tmp_path / "nothing")


def test_options_that_do_not_go_together() -> None:
    for options, said in {
        "--exported x": "another engine",
        "--dry-run": "another engine",
        "--engine vllm --exported x --run y": "no --run",
        "--engine vllm --max-batch 4": "its queue itself",
        "--allow-origin https://example.org/": "is no origin",
    }.items():
        result = CliRunner().invoke(app, ["serve", *options.split()])
        assert result.exit_code
        assert said in (str(result.exception) + result.output)


def test_vllm_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(YiTuneError, match="vLLM is not installed") as said:
        vllm.start(["vllm", "serve"], None)
    assert "uv tool install vllm" in said.value.hint


def test_vllm_gets_the_key_where_nobody_sees_it(tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\necho "$VLLM_API_KEY $*"\n')
    fake.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def said(*command: str, **environment: str) -> str:
        return subprocess.run(command, env=path | environment, capture_output=True, text=True, check=False).stdout

    start = "from yi_tune.serve import vllm; vllm.start(['vllm', 'serve', 'x y'], 'k')"
    assert said(sys.executable, "-c", start, PYTHONPATH=os.environ.get("PYTHONPATH", "")) == "k serve x y\n"
    # The command that is shown asks for the key, and does not tell it.
    line = vllm.shown(["vllm", "serve", "x y"], "secret")
    assert "secret" not in line
    assert said("bash", "-c", line) == ""
    assert said("bash", "-c", line, YI_TUNE_API_KEY="k") == "k serve x y\n"


def test_nothing_here_imports_torch() -> None:
    modules = "app, schema, server, vllm, worker"
    check = f"import sys; from yi_tune.serve import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


ENDLESS = """
from tests.test_serve import FakeEngine
from yi_tune.serve import server
from yi_tune.serve.app import Names, create_app
from yi_tune.sampling import Piece

server.GRACE_SECONDS = 0.5
engine = FakeEngine()
engine.pieces = [Piece("Hi", 1)]

def close():
    for generation in engine.asked:
        generation.emit(Piece("", 1, "error"))

listening = server.listen("127.0.0.1", 0)
print(server.url(listening), flush=True)
server.serve(create_app(engine, Names("mine", "base")), listening, close)
"""


def test_replies_that_outlast_the_grace_after_sigterm_end_as_errors() -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", ENDLESS], cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout
        url = process.stdout.readline().strip() + "/v1/chat/completions"
        whole: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: whole.append(httpx.post(url, json=HELLO, timeout=20)))
        with httpx.stream("POST", url, json={**HELLO, "stream": True}, timeout=20) as streamed:
            lines = streamed.iter_lines()
            next(lines)
            waiting.start()
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            said = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        waiting.join()
        _, err = process.communicate(timeout=20)
    assert said[-1]["error"]["type"] == "server_error"
    assert error(whole[0], 500)["type"] == "server_error"
    assert (process.returncode, err) == (0, "")
