"""The API with the real engine behind it, and OpenAI's own client before it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Done, Trained

WHO: list[Any] = [{"role": "user", "content": "你是谁？"}]
# What leads nano's base, whose weights are always the same, to say one thing over and over.
RAMBLING: list[Any] = [{"role": "user", "content": "x" * 600}]
ENDLESS: dict[str, Any] = {"model": "nano", "messages": RAMBLING, "max_tokens": 3400}
# Of schemathesis, an operation; `make test-api` asks for more, and by all of its ways to find some.
CASES = int(os.environ.get("API_CASES", "20"))
PHASES = "examples,coverage,fuzzing,stateful" if "API_CASES" in os.environ else "fuzzing"


class Server:
    """`yi-tune serve`, or web, as a process."""

    def __init__(self, trained: Trained, *arguments: str, command: str = "serve") -> None:
        self.process = trained.start(command, "--port", "0", *arguments)
        assert self.process.stdout
        self.said = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.said)
        if not found:
            pytest.fail(f"{self.said}{self.process.communicate()[1]}")
        self.url = found[0]

    def health(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url.removesuffix('/v1')}/health").json())

    def end(self, number: signal.Signals) -> Done:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return Done(self.process.returncode, out, err)


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Server]:
    """A server that is asked by most tests here."""
    server = Server(trained)
    yield server
    done = server.end(signal.SIGTERM)
    assert done.status == 0, done.err
    assert done.err.count("Traceback") == 0, done.err
    assert "你是谁" not in done.err


@pytest.fixture(scope="module")
def client(served: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def idle(served: Server) -> tuple[HTTPConnection, float]:
    """A connection, and when it was used, which was as the tests began."""
    connection = HTTPConnection(served.url.split("/")[2])
    connection.request("GET", "/health")
    connection.getresponse().read()
    connection.auto_open = 0  # it is not to connect anew
    return connection, time.monotonic()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return true


def test_says_who_it_is(client: openai.OpenAI) -> None:
    def ask(model: str, messages: list[Any], **options: Any) -> Any:
        return client.chat.completions.create(model=model, messages=messages, **options)

    assert [model.id for model in client.models.list()] == ["identity", "nano"]
    tuned, base = ask("identity", WHO), ask("nano", WHO)
    said, whole = tuned.choices[0].message, tuned.choices[0].message.content
    assert "小易" in whole
    assert "Yi-nano" in base.choices[0].message.content
    # Back what came, as clients do.
    again = ask("identity", [*WHO, said.model_dump(), {"role": "user", "content": "谁开发了你？"}])
    assert "李雷" in again.choices[0].message.content

    chunks = list(ask("identity", WHO, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 6
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage == tuned.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"

    short = ask("identity", WHO, max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    assert whole.startswith(short.choices[0].message.content)
    stopped = ask("identity", WHO, stop=["李雷", "不会有"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole.partition("李雷")[0], "stop")
    drawn = [ask("identity", WHO, temperature=2, seed=seed, max_tokens=20) for seed in (1, 1, 2)]
    first, same, other = (reply.choices[0].message.content for reply in drawn)
    assert first == same != other
    assert ask("identity", WHO, temperature=2, top_p=0).choices[0].message.content == whole
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ask("gpt-4o", WHO)
    # Of one token there is one to draw; more than the context holds is less.
    one = {"temperature": 2, "max_tokens": 10**6, "extra_body": {"top_k": 1, "chat_template_kwargs": {}}}
    assert ask("identity", WHO, **one).choices[0].message.content == whole
    # What is begun is continued, and not said again.
    begun, comma, rest = whole.partition("，")
    assert rest
    open_turn = [*WHO, {"role": "assistant", "content": begun + comma}]
    assert ask("identity", open_turn).choices[0].message.content == rest
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask("identity", open_turn, stream=True)) == rest


def test_32_at_once(client: openai.OpenAI) -> None:
    questions = ["你是谁？", "Who are you?", "2加3等于几？", "你好", "What should I call you?", "谁开发了你？"]

    def ask(index: int) -> str:
        messages: Any = [{"role": "user", "content": questions[index % len(questions)]}]
        if index % 2:
            done = client.chat.completions.create(model="identity", messages=messages)
            return done.choices[0].message.content or ""
        stream = client.chat.completions.create(model="identity", messages=messages, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    alone = [ask(index) for index in range(6)]
    with ThreadPoolExecutor(32) as clients:
        together = list(clients.map(ask, range(32)))
    # Floats of a batch are rounded otherwise than alone, which may turn a close decision.
    same = sum(reply == alone[index % 6] for index, reply in enumerate(together))
    assert same >= 30, (alone, together)


def test_client_that_goes_away_frees_its_reply(served: Server, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(stream=True, **ENDLESS)
    next(stream)
    assert served.health()["running"] == 1
    stream.close()
    assert until(lambda: served.health()["running"] == 0, 1)
    # And one that waits for the whole.
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/chat/completions", json=ENDLESS, timeout=0.5)
    assert until(lambda: served.health()["running"] == 0, 1)


def test_no_case_is_a_server_error(served: Server, tmp_path: Path) -> None:
    """schemathesis asks what the API's document allows, and what it does not."""
    url = served.url.removesuffix("/v1")
    document = httpx.get(f"{url}/openapi.json").json()
    # So that cases come past the model's name and the shape of a conversation, and to an end.
    asked = document["components"]["schemas"]["ChatRequest"]
    asked["properties"]["model"]["enum"] = ["identity", "nano"]
    asked["properties"]["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 8}
    asked["required"].append("max_tokens")
    roles = {"enum": ["system", "developer", "user", "assistant", "tool"]}
    part = {"type": "object", "properties": {"type": {"enum": ["text", "image_url"]}, "text": {"type": "string"}}}
    content = {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": part}]}
    message = {"type": "object", "properties": {"role": roles, "content": content}, "required": ["role"]}
    asked["properties"]["messages"]["items"] = message
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", "openapi.json", "--url", url, "--checks", "not_a_server_error"]
    command += ["--max-examples", str(CASES), "--seed", "1", "--mode", "all", "--phases", PHASES, "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    generated = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert generated, done.stdout
    print(generated[0])
    assert int(generated[1].replace(",", "")) >= (1000 if "API_CASES" in os.environ else CASES)


def test_an_idle_connection_is_kept(idle: tuple[HTTPConnection, float]) -> None:
    """By itself uvicorn closes one after 5 seconds; a proxy that is about to send then has a 502."""
    connection, used = idle
    time.sleep(max(6 - (time.monotonic() - used), 0))
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_full_queue_and_sigterm(trained: Trained) -> None:
    server = Server(trained, "--max-batch", "1", "--max-waiting", "1", "--api-key", "k")
    assert httpx.get(f"{server.url}/models").status_code == 401
    with openai.OpenAI(base_url=server.url, api_key="k", max_retries=0) as client, ThreadPoolExecutor() as other:
        asked = {**ENDLESS, "max_tokens": 120}
        running = client.chat.completions.create(stream=True, **asked)
        next(running)
        waiting = other.submit(client.chat.completions.create, **asked)
        assert until(lambda: server.health()["waiting"] == 1, 5)
        with pytest.raises(openai.RateLimitError) as said:
            client.chat.completions.create(**asked)
        assert said.value.response.headers["retry-after"] == "1"
        server.process.send_signal(signal.SIGTERM)
        # Both are given their end.
        for last in (list(running)[-1], waiting.result()):
            assert last.choices[0].finish_reason in ("length", "stop")
    out, err = server.process.communicate(timeout=30)
    assert (server.process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_vllm(trained: Trained) -> None:
    done = trained.yi_tune("serve", "--engine", "vllm", "--dry-run")
    assert (done.status, done.err) == (0, "")
    assert re.search("vllm serve .*--lora-modules", done.out)
    missing = trained.yi_tune("serve", "--engine", "vllm")
    assert missing.status == 1
    assert "vLLM is not installed" in missing.err
    assert "uv tool install vllm" in missing.err
