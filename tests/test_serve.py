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
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
from yi_tune.sampling import Generation, Sampling
from yi_tune.serve import server, vllm
from yi_tune.serve.app import create_app
from yi_tune.serve.schema import ApiError, ChatRequest
from yi_tune.serve.server import MAX_BODY
from yi_tune.serve.worker import Worker

NAMES = ("mine", "nano")
HELLO: dict[str, Any] = {"model": "mine", "messages": [{"role": "user", "content": "hello"}]}
JSON = {"content-type": "application/json"}


class FakeEngine(Worker):
    """A token a character; says `pieces` at once and ends as `finish` tells, or takes nothing where it is `full`."""

    def __init__(self) -> None:
        self.context, self.encode = 100, self._encode
        self.asked: list[Generation] = []
        self.chats: list[list[Message]] = []
        self.pieces: list[str] = ["Hi", " there"]
        self.finish: Any = "stop"
        self.full = False

    def counts(self) -> tuple[int, int]:
        return 0, 0

    def _encode(self, messages: list[Message]) -> list[int]:
        self.chats.append(messages)
        return [1] * sum(len(message["content"]) for message in messages)

    def submit(self, generation: Generation) -> bool:
        if not self.full:
            self.asked.append(generation)
            for piece in self.pieces:
                generation.tokens.append(1)
                generation.text += piece
                generation.emit(piece)
            if self.finish:
                self.end(generation)
        return not self.full

    def end(self, generation: Generation) -> None:
        generation.tokens.append(2)
        generation.finish = self.finish
        generation.emit("")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    """A client of an app without a key."""
    return client_of(engine, "127.0.0.1:8000")


def client_of(engine: FakeEngine, host: str, *options: Any, **more: Any) -> TestClient:
    return TestClient(create_app(engine, NAMES, *options, **more), f"http://{host}", raise_server_exceptions=False)


def ask(client: TestClient, headers: Any = None, **fields: Any) -> httpx.Response:
    """Say hello, with these fields beside it or instead."""
    return client.post("/v1/chat/completions", json=HELLO | fields, headers=headers)


def error(response: Any, status: int) -> dict[str, Any]:
    """The error of a response, which has OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    return dict(response.json()["error"])


def test_chat(client: TestClient, engine: FakeEngine) -> None:
    body = ask(client).json()
    assert (body["object"], body["model"]) == ("chat.completion", "mine")
    message = {"role": "assistant", "content": "Hi there", "refusal": None}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
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
    *chunks, last = events(ask(client, stream=True, stream_options={"include_usage": True}))
    said = [{"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": " there"}, {}]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == said
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 8)
    assert all("usage" not in chunk for chunk in [*chunks, *events(ask(client, stream=True))])


def test_sampling(client: TestClient, engine: FakeEngine) -> None:
    fields = {"model": "nano", "seed": -1, "temperature": 1, "top_p": 0, "max_tokens": 7, "stop": "x", "top_k": 5}
    assert ask(client, **fields, repetition_penalty=1.1).status_code == 200
    (asked,) = engine.asked
    assert (asked.base, asked.stop) == (True, ["x"])
    assert asked.sampling == Sampling(1.0, 1e-6, 1.1, max_new_tokens=7, seed=2**63 - 1, top_k=5)


def test_failure_is_told(client: TestClient, engine: FakeEngine) -> None:
    engine.finish = "error"
    assert error(ask(client), 500)["type"] == "server_error"
    last = ask(client, stream=True).text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


def test_full(client: TestClient, engine: FakeEngine) -> None:
    engine.full = True
    response = ask(client, stream=True)
    assert error(response, 429)["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "1"


def test_other_routes(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["mine", "nano"]
    assert client.get("/v1/models/nano").json()["object"] == "model"
    for response in (client.get("/v1/models/other"), ask(client, model="gpt-4o")):
        assert error(response, 404)["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    assert "Invalid URL" in error(client.get("/v1/embeddings"), 404)["message"]
    wrong = client.get("/v1/chat/completions")
    error(wrong, 405)
    assert wrong.headers["allow"] == "POST"
    for path in ("/v1/completions", "/docs", "/redoc", "/"):
        assert client.get(path).status_code == 404


def says(role: Any, content: Any = "x") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


# Fields that ask for nothing.
EMPTY: dict[str, Any] = {"tools": [], "tool_choice": "none", "logit_bias": {}, "stop": [], "logprobs": False}
ASKED = HELLO["messages"]
OTHERWISE = ("tool_calls", "function_call", "audio", "refusal")
REFUSED: list[dict[str, Any]] = [
    *[{"temperature": 2.1}, {"temperature": "1"}, {"top_p": -0.1}, {"max_tokens": 0}, {"max_tokens": True}],
    *[{"stop": ["a"] * 5}, {"stop": ""}, {"stop": 5}],
    *[{"top_k": -2}, {"top_k": 1.5}, {"repetition_penalty": 0}, {"repetition_penalty": 11}],
    *[{"presence_penalty": 0.1}, {"n": 2}, {"logprobs": True}, {"tools": [{"type": "function"}]}, {"min_p": 0.1}],
    *[{"min_tokens": 5}, {"ignore_eos": True}, {"stop_token_ids": [7]}, {"guided_choice": ["a"]}, {"grammar": "a"}],
    *[{"tool_choice": "required"}, {"response_format": {"type": "json_object"}}, {"logit_bias": {"1": 1}}],
    *[{"messages": []}, {"messages": ["x"]}, {"messages": [{"role": "user"}]}],
    *[says(role) for role in ("tool", "assistant", "system", ["user"])],
    *[says("user", [part]) for part in ({"type": "text"}, {"type": "image_url", "image_url": {"url": "http://x"}})],
    # What was said in another way than text.
    *[{"messages": [*ASKED, {"role": "assistant", "content": None, name: "x"}, *ASKED]} for name in OTHERWISE],
]


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_refused(fields: dict[str, Any], client: TestClient, engine: FakeEngine) -> None:
    assert error(ask(client, **fields), 400)["param"] == next(iter(fields))
    assert not engine.asked


def test_longer_than_the_context(client: TestClient, engine: FakeEngine) -> None:
    """What a reply may have is lowered to what is left; where a prompt leaves nothing, that is said."""
    for field, asked in (("max_tokens", 96), ("max_completion_tokens", 10**10), ("max_tokens", 95)):
        assert ask(client, **{field: asked}).status_code == 200
        assert engine.asked[-1].sampling.max_new_tokens == 95
    assert ask(client, **says("user", "x" * 99)).status_code == 200
    assert engine.asked[-1].sampling.max_new_tokens == 1
    for length in (100, 123):
        said = error(ask(client, max_tokens=7, **says("user", "x" * length)), 400)
        assert (said["code"], said["param"]) == ("context_length_exceeded", "messages")
        assert f"length is 100 tokens. Your messages have {length}," in said["message"]


def test_taken(client: TestClient) -> None:
    for fields in (
        {"presence_penalty": 0, "frequency_penalty": 0.0, "temperature": 0, "seed": -1, "stop": None, "n": 1},
        {"max_completion_tokens": 95, "tools": [], "logprobs": False, "response_format": {"type": "text"}},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True, "of next year": 1},
        {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}, "keep_alive": "5m"},
        {"reasoning_effort": "low", "service_tier": "auto", "stream_options": {}, "typical_p": 1.0, "min_p": 0.0},
        EMPTY,
        dict.fromkeys({*ChatRequest.model_fields, *EMPTY, "user", "min_p", "response_format"} - {*HELLO}),
        says("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
    ):
        response = ask(client, **fields)
        assert response.status_code == 200, response.text


def test_extra_keys_of_a_message(client: TestClient, engine: FakeEngine) -> None:
    extra = {"name": "a", "refusal": None, "tool_calls": None, "function_call": None, "audio": None, "annotations": []}
    said = {"role": "assistant", "content": "b", **extra, "tool_calls": [], "reasoning_content": "c", "id": "d"}
    mine = {"role": "user", "content": "a", **extra}
    assert ask(client, messages=[mine, said, mine]).status_code == 200
    assert engine.chats == [[{"role": one["role"], "content": one["content"]} for one in (mine, said, mine)]]


def had(engine: FakeEngine, client: TestClient, *sent: tuple[str, Any]) -> list[tuple[str, str]]:
    """What the engine has of these messages, as roles and contents."""
    assert ask(client, messages=[{"role": role, "content": content} for role, content in sent]).status_code == 200
    return [(message["role"], message["content"]) for message in engine.chats[-1]]


def test_conversation_as_the_template_has_it(client: TestClient, engine: FakeEngine) -> None:
    sent = [("system", "a"), ("developer", "b"), ("user", "c"), ("user", "d"), ("assistant", None), ("user", "e")]
    first, *rest = [("system", "a\n\nb"), ("user", "c\n\nd"), ("assistant", ""), ("user", "e")]
    assert had(engine, client, *sent) == [first, *rest]
    # Later system messages come to the first, in order; those without a word leave nothing.
    later = [("system", "f"), ("user", "c"), ("system", ""), ("user", "d"), *sent[4:], ("developer", "g")]
    assert had(engine, client, *later) == [("system", "f\n\ng"), *rest]


def test_an_assistant_message_last_is_continued(client: TestClient, engine: FakeEngine) -> None:
    sent = [("user", "a"), ("assistant", "My name"), ("assistant", " is")]
    assert had(engine, client, *sent) == [("user", "a"), ("assistant", "My name\n\n is")]
    body = ask(client, messages=[{"role": role, "content": content} for role, content in sent[:2]]).json()
    assert body["choices"][0]["message"]["content"] == "Hi there"
    assert body["usage"]["prompt_tokens"] == 8


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "The body"),
        (json.dumps(HELLO).replace("hello", "你是谁").encode("gbk"), 400, "not UTF-8"),
        (b"\xff", 400, "not UTF-8"),
        (b"[" * 100_000, 400, "the body"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', 400, "'model'"),
        (b'{"model": "mine", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "'messages.0.content'"),
        (b'{"model": "mine", "messages": [{"role": "user", "content": "x"}], "top_p": NaN}', 400, "'top_p'"),
        (b"x" * (MAX_BODY + 1), 413, "too large"),
        ((b"x" * 65536 for _ in range(40)), 413, "too large"),
    ],
)
def test_bodies_that_are_none(content: Any, status: int, said: str, client: TestClient) -> None:
    assert said in error(client.post("/v1/chat/completions", content=content, headers=JSON), status)["message"]


def test_body_is_sent_as_json(client: TestClient) -> None:
    plain = client.post("/v1/chat/completions", content=json.dumps(HELLO), headers={"content-type": "text/plain"})
    assert "application/json" in error(plain, 400)["message"]


def test_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.1)
    with pytest.raises(ApiError, match="not there whole"):
        asyncio.run(server.read_body(lambda: asyncio.Event().wait()))


def test_key(engine: FakeEngine) -> None:
    client = client_of(engine, "example.org", "secret")
    for given in ("", "Bearer wrong", "secret", b"Bearer \xe9"):
        for path in ("/v1/models", "/v1/none", "/openapi.json"):
            assert error(client.get(path, headers={"authorization": given}), 401)["code"] == "invalid_api_key"
        error(ask(client, {"authorization": given}), 401)
    assert not engine.asked
    assert client.get("/v1/models").status_code == 401
    assert client.get("/health").status_code == 200
    mine = {"authorization": "Bearer secret"}
    assert client.get("/openapi.json", headers=mine).status_code == ask(client, mine).status_code == 200


def test_names_of_the_server(client: TestClient) -> None:
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "[::1]", "127.1.2.3"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example", "", "[::1", "127.0.0.1:x"):
        assert error(client.get("/v1/models", headers={"host": host}), 403)["code"] == "unknown_host"


def test_origins(client: TestClient, engine: FakeEngine) -> None:
    other = {"origin": "https://example.org"}
    assert ask(client, {"origin": "http://127.0.0.1:8000"}).status_code == 200
    for origin in ("https://example.org", "null", "http://127.0.0.1:8001", "http://[::1"):
        refused = ask(client, {"origin": origin})
        assert error(refused, 403)["code"] == "unknown_origin"
        assert "access-control-allow-origin" not in refused.headers
    allowing = client_of(engine, "localhost", None, ("https://example.org",))
    answered = ask(allowing, other)
    assert answered.status_code == 200
    assert answered.headers["access-control-allow-origin"] == "https://example.org"
    preflight = {**other, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert allowing.options("/v1/chat/completions", headers=preflight).status_code == 200
    error(allowing.get("/v1/models", headers={"origin": "https://evil.example"}), 403)


def test_origins_that_are_no_web_pages(engine: FakeEngine) -> None:
    allowing = client_of(engine, "localhost", None, ("app://obsidian.md", "tauri://localhost", "http://localhost:*"))
    asked = {"access-control-request-method": "POST", "access-control-request-private-network": "true"}
    for origin in ("app://obsidian.md", "tauri://localhost", "http://localhost", "http://localhost:5173"):
        preflight = allowing.options("/v1/chat/completions", headers={"origin": origin, **asked})
        assert preflight.status_code == 200, preflight.text
        assert preflight.headers["access-control-allow-private-network"] == "true"
        for answered in (preflight, ask(allowing, {"origin": origin}), ask(allowing, {"origin": origin}, n=2)):
            assert answered.headers["access-control-allow-origin"] == origin
    for origin in (
        "http://localhost:x",
        "http://localhost.evil.example:1",
        "https://localhost:1",
        "http://localhost:1/",
    ):
        assert error(ask(allowing, {"origin": origin}), 403)["code"] == "unknown_origin"
        assert allowing.options("/v1/chat/completions", headers={"origin": origin, **asked}).status_code == 400


def test_behind_a_proxy(engine: FakeEngine) -> None:
    """nginx passes on its own name for the server, or the one that the browser asked for."""
    mine = {"origin": "https://chat.example.org"}
    plain, passed = mine | {"host": "127.0.0.1:8000"}, mine | {"host": "chat.example.org"}
    closed = client_of(engine, "127.0.0.1:8000", page=True)
    # The page is public. A browser sends the Origin with a module's script.
    for path in ("/", "/page.js", "/icon.svg"):
        assert closed.get(path, headers=plain).status_code == 200
    remedy = "--allow-origin https://chat.example.org"
    said = error(ask(closed, plain), 403)["message"]
    assert remedy in said
    assert "proxy_set_header Host $http_host" in said
    for response in (closed.get("/", headers={"host": "chat.example.org"}), ask(closed, passed)):
        said = error(response, 403)
        assert said["code"] == "unknown_host"
        assert remedy in said["message"]
        assert "--api-key" in said["message"]
    opened = "Open it by HTTP"
    assert opened in error(ask(closed, {"origin": "null"}), 403)["message"]

    # With a key the name does not matter; a container's name for this machine is one.
    keyed, key = client_of(engine, "chat.example.org", "k", page=True), {"authorization": "Bearer k"}
    assert ask(keyed, passed | key).status_code == 200
    assert ask(keyed, {"host": "host.docker.internal:8000"} | key).status_code == 200
    error(ask(keyed, plain | key), 403)

    allowing = client_of(engine, "x", None, ("https://chat.example.org", "app://obsidian.md"), page=True)
    for headers in (plain, passed):
        assert allowing.get("/", headers=headers).status_code == ask(allowing, headers).status_code == 200
    # A name that was pointed here: another's; that of no web page; and the allowed one, but not by way of the proxy.
    for host in ("evil.example:8000", "obsidian.md", "chat.example.org:8000", "chat.example.org.evil.example"):
        rebound = {"host": host, "origin": f"http://{host}"}
        assert error(ask(allowing, rebound), 403)["code"] == "unknown_host"
    error(ask(allowing, passed | {"origin": "https://evil.example"}), 403)


def test_page(engine: FakeEngine) -> None:
    client = client_of(engine, "example.org", "secret", page=True)
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript"), ("/icon.svg", "svg")):
        answered = client.get(path)
        assert answered.status_code == 200
        assert kind in answered.headers["content-type"]
        policy = answered.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy
    assert not re.search(r"https?:|<script>|<style|style=|\son\w+=", client.get("/").text)
    error(client.get("/../app.py"), 404)


# Where it listens, with what key, and how it ends


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
        fault = f"127.0.0.1:{port} cannot be listened on: Address already in use"
        with pytest.raises(YiTuneError, match=fault) as said:
            server.listen("127.0.0.1", port)
        assert "--port" in said.value.hint
    with pytest.raises(YiTuneError, match="cannot be listened on: Name"):
        server.listen("no.such.host.invalid", 0)
    if socket.has_ipv6:
        with server.listen("::1", 0) as sixth:
            assert server.url(sixth).startswith("http://[::1]:")


def test_replies_that_outlast_the_grace_after_sigterm_end_as_errors(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.3)
    engine.finish = None
    listening = server.listen("127.0.0.1", 0)
    url = f"{server.url(listening)}/v1/chat/completions"

    def stream() -> Any:
        with httpx.stream("POST", url, json={**HELLO, "stream": True}, timeout=20) as streamed:
            lines = streamed.iter_lines()
            while len(engine.asked) < 2:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")][-1]

    def close() -> None:
        engine.finish = "error"
        for generation in engine.asked:
            engine.end(generation)

    with ThreadPoolExecutor() as clients:
        whole = clients.submit(httpx.post, url, json=HELLO, timeout=20)
        streamed = clients.submit(stream)
        server.serve(create_app(engine, NAMES), listening, close)
    assert streamed.result()["error"]["type"] == "server_error"
    assert error(whole.result(), 500)["type"] == "server_error"


def test_nothing_here_imports_torch() -> None:
    check = "import sys; from yi_tune.serve import app, vllm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_options_that_do_not_go_together() -> None:
    for options, said in {
        "--exported x": "another engine",
        "--dry-run": "another engine",
        "--engine vllm --exported x --run y": "no --run",
        "--engine vllm --max-batch 4": "its queue itself",
        "--allow-origin https://example.org/": "is no origin",
        "--allow-origin null": "is no origin",
        "--allow-origin http://*": "is no origin",
        "--allow-origin http://a:*b": "is no origin",
        "--engine vllm --allow-origin http://localhost:*": "vLLM takes no :*",
    }.items():
        result = CliRunner().invoke(app, ["serve", *options.split()])
        assert result.exit_code
        assert said in (str(result.exception) + result.output)


# vLLM


def test_vllm_serves_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "mine")
    run.folder.mkdir()
    monkeypatch.setattr(Run, "record", {"model_path": "/models/Yi-1.5-6B-Chat"})
    (run.folder / "adapter_config.json").write_text('{"r": 12}')
    config = {"model_name_or_path": "/models/Yi-1.5-6B-Chat", "quantization_bit": 4}
    monkeypatch.setattr("yi_tune.loading.run_config", lambda _: config)
    line = vllm.command(run, "::", 80, ())
    ends = run.folder / "vllm"
    assert line == [
        *["vllm", "serve", "/models/Yi-1.5-6B-Chat", "--served-model-name", "Yi-1.5-6B-Chat"],
        *["--enable-lora", "--max-lora-rank", "16"],
        *["--lora-modules", json.dumps({"name": "mine", "path": str(run.folder)})],
        *["--chat-template", str(CHAT_TEMPLATE), "--generation-config", str(ends)],
        # It lets nobody in who was not named.
        *["--host", "::", "--port", "80", "--allowed-origins", "[]", "--disable-fastapi-docs"],
    ]
    assert shlex.split(vllm.shown(line, None)) == line
    assert '["https://a.org"]' in vllm.command(run, "127.0.0.1", 8000, ("https://a.org",))
    assert json.loads((ends / "generation_config.json").read_text())["eos_token_id"] == [2, 6, 7, 8]
    # Where chat answers in 4 bits, vLLM's answers are not quite the same.
    assert "chat in 4" in capsys.readouterr().err


def test_vllm_serves_an_export(tmp_path: Path) -> None:
    record = {"run": "mine", "identity": {}, "gguf": "", "files": []}
    (tmp_path / "export.json").write_text(json.dumps(record))
    line = vllm.command(tmp_path, "127.0.0.1", 8000, ())
    assert line[:5] == ["vllm", "serve", str(tmp_path), "--served-model-name", "mine"]
    (tmp_path / "export.json").write_text(json.dumps(record | {"gguf": "mine-f16.gguf"}))
    with pytest.raises(YiTuneError, match="is GGUF") as said:
        vllm.command(tmp_path, "127.0.0.1", 8000, ())
    assert "--format hf" in said.value.hint


def test_vllm_gets_the_key_where_nobody_sees_it(tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\necho "$VLLM_API_KEY $*"\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def said(*command: str, **more: str) -> str:
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False).stdout

    start = "from yi_tune.serve import vllm; vllm.start(['vllm', 'serve', 'x y'], 'k')"
    assert said(sys.executable, "-c", start) == "k serve x y\n"
    # The command that is shown asks for the key, and does not tell it.
    line = vllm.shown(["vllm", "serve", "x y"], "secret")
    assert "secret" not in line
    assert said("bash", "-c", line) == ""
    assert said("bash", "-c", line, YI_TUNE_API_KEY="k") == "k serve x y\n"
