"""`yi-tune serve` beside LLaMA-Factory's own API, on the same run: `make bench-serve`.

Both servers are asked the same questions, greedily, by 1, 4 and 16 clients that each wait for one answer before they
ask the next; the servers run in turn, each alone: with the base in 16 bits, and in 4 as where memory is short. Writes
docs/bench-serve.md.
"""

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.pages import DOCS, MACHINE, table, write

CLIENTS = (1, 4, 16)
REQUESTS = 96  # a round and a number of clients
QUESTIONS = (
    "你是谁？",
    "Who are you?",
    "2加3等于几？",
    "谁开发了你？",
    "What should I call you?",
    "你好",
    "Thank you!",
    "法国的首都是哪里？",
)
OURS, THEIRS = "yi-tune serve", "llamafactory-cli api"


@dataclass(frozen=True)
class Rate:
    """Requests and completion tokens a second, and the median seconds of a request."""

    requests: float
    tokens: float
    latency: float


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def start(name: str, run: Path, port: int) -> "subprocess.Popen[bytes]":
    """The server, on its way up."""
    if name == OURS:
        workspace = str(run.parents[2])
        command = [sys.executable, "-m", "yi_tune", "serve", "--run", run.name, "--workspace", workspace]
        command += ["--port", str(port)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = [sys.executable, "-m", "llamafactory.cli", "api", str(run / "chat.yaml")]
    # Its log of every prompt costs it time that it need not.
    environment = os.environ | {"API_HOST": "127.0.0.1", "API_PORT": str(port), "API_VERBOSE": "0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def ask(url: str, model: str, clients: int, requests: int) -> Rate:
    """Ask `requests` questions with so many clients at a time."""
    left = iter(range(requests))
    tokens, seconds = 0, []

    async def client() -> None:
        nonlocal tokens
        async with httpx.AsyncClient(timeout=300) as http:
            for index in left:
                messages = [{"role": "user", "content": QUESTIONS[index % len(QUESTIONS)]}]
                body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 128}
                began = time.monotonic()
                response = await http.post(f"{url}/chat/completions", json=body)
                seconds.append(time.monotonic() - began)
                tokens += response.raise_for_status().json()["usage"]["completion_tokens"]

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.monotonic() - began
    return Rate(requests / took, tokens / took, statistics.median(seconds))


def measure(name: str, run: Path, clients: list[int], requests: int) -> dict[int, Rate]:
    """Start a server, warm it up, ask it, end it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    process = start(name, run, port)
    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"{name} ended before it listened.")
            try:
                httpx.get(f"{url}/models", timeout=300)
                break
            except httpx.ConnectError:
                time.sleep(0.2)
        asyncio.run(ask(url, run.name, 4, 8))
        return {each: asyncio.run(ask(url, run.name, each, requests)) for each in clients}
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def median(rates: list[Rate]) -> Rate:
    """The median of each figure."""
    return Rate(*(statistics.median(getattr(rate, field) for rate in rates) for field in vars(rates[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="with a finished run called bench; else one is trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--bits", type=int, nargs="+", default=(16, 4), choices=(16, 4))
    parser.add_argument("--page", type=Path, default=DOCS / "bench-serve.md")
    options = parser.parse_args()
    rates: dict[tuple[str, int], list[dict[int, Rate]]] = {
        (server, bits): [] for bits in options.bits for server in (OURS, THEIRS)
    }
    with tempfile.TemporaryDirectory() as temporary:
        workspace = options.workspace or Path(temporary)
        run = workspace.absolute() / "saves" / "nano" / "bench"
        if not (run / "report.json").exists():
            train = ["train", "--model", "nano", "--name", "小易", "--author", "李雷", "--run", run.name]
            train += ["--workspace", str(workspace)]
            subprocess.run([sys.executable, "-m", "yi_tune", *train], check=True, capture_output=True)
        in_4_bits = run.with_name("bench-4")
        shutil.copytree(run, in_4_bits, dirs_exist_ok=True)
        with (in_4_bits / "chat.yaml").open("a") as chat_yaml:
            chat_yaml.write("quantization_bit: 4\n")
        for _ in range(options.rounds):
            for (server, bits), measured in rates.items():
                measured.append(measure(server, run if bits == 16 else in_4_bits, options.clients, options.requests))
                print(server, bits, measured[-1], flush=True)
    lines = [
        f"{options.requests} requests to nano, tuned, by clients that each wait for an answer before they "
        f"ask again; {options.rounds} rounds in turn, medians. {MACHINE}. On "
        "another machine only the ratio holds. LLaMA-Factory's API as it comes: one request at a time.",
        "",
        *table(
            "bits", "clients", *(f"{server}: requests/s | tokens/s | median s" for server in (OURS, THEIRS)), "ratio"
        ),
    ]
    for bits in options.bits:
        for clients in options.clients:
            ours, theirs = (median([one[clients] for one in rates[server, bits]]) for server in (OURS, THEIRS))
            lines.append(
                f"| {bits} | {clients} | {ours.requests:.1f} | {ours.tokens:.0f} | {ours.latency:.3f} "
                f"| {theirs.requests:.1f} | {theirs.tokens:.0f} | {theirs.latency:.3f} "
                f"| **{ours.requests / theirs.requests:.2f}** |"
            )
    if len(options.bits) > 1:
        requests = {
            (bits, clients): median([one[clients] for one in rates[OURS, bits]]).requests
            for bits in (16, 4)
            for clients in options.clients
        }
        ratios = ", ".join(f"{requests[16, each] / requests[4, each]:.1f} with {each}" for each in options.clients)
        lines += ["", f"Requests/s of {OURS} in 16 bits, as a multiple of those in 4 bits: {ratios}."]
    write(options.page, "Serving", "serve", lines)


if __name__ == "__main__":
    main()
