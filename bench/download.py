"""`yi-tune download` beside huggingface_hub's own snapshot_download, on loopback: `make bench-download`.

Both fetch the same shards from the same server (tests/hubs) as whole processes, in turn; yi-tune's checks
every sha256 and the model besides. Writes docs/bench-download.md.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from bench.pages import DOCS, MACHINE, table, write
from tests.hubs import HuggingFace
from tests.hubs.machine import environment
from tests.hubs.models import nano_tokenizer, sharded

ROUNDS = 11
SHARDS = 4
SHARD_BYTES = 250_000_000
OURS, THEIRS = "yi-tune download", "huggingface_hub.snapshot_download"
SNAPSHOT = f"from huggingface_hub import snapshot_download as s; s({HuggingFace.repository!r}, local_dir='theirs')"
COMMANDS = {
    OURS: [str(Path(sys.executable).with_name("yi-tune")), "download", "--source", "huggingface"],
    THEIRS: [sys.executable, "-c", SNAPSHOT],
}


def write_model(folder: Path) -> dict[str, bytes | mmap]:
    """The files of a model with 1 GB of random weights."""
    random = numpy.random.default_rng(1)
    files: dict[str, bytes | mmap] = dict(sharded(nano_tokenizer(), vocab=1792, hidden=128))
    for name in [name for name in files if name.endswith(".safetensors")]:
        del files[name]
    weight_map = {}
    for number in range(1, SHARDS + 1):
        path = folder / f"model-{number:05}-of-{SHARDS:05}.safetensors"
        tensor = f"model.layers.{number}.mlp.up_proj.weight"
        save_file({tensor: random.integers(0, 1 << 16, SHARD_BYTES // 2, dtype=numpy.uint16)}, path)
        weight_map[tensor] = path.name
        with path.open("rb") as file:
            files[path.name] = mmap(file.fileno(), 0, access=ACCESS_READ)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


def timed(name: str, home: Path, address: str) -> float:
    """Wall seconds of one side, into an empty folder."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    os.sync()
    began = time.monotonic()
    done = subprocess.run(
        COMMANDS[name],
        cwd=home,
        env=environment(home, huggingface=address),
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return took


def main() -> None:
    """Run the pair and write the page."""
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_model(folder)
        with HuggingFace(files) as hub:
            size = sum(map(len, files.values()))
            for file in files:
                hub.digest(file), hub.digest(file, "sha1")  # the real hub has them ready
            for turn in range(ROUNDS):
                for name in (OURS, THEIRS) if turn % 2 == 0 else (THEIRS, OURS):
                    seconds[name].append(timed(name, folder / "home", hub.address))
                    print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    ours, theirs = (statistics.median(took) for took in seconds.values())
    lines = [
        f"{size / 1e9:.2f} GB in {SHARDS} shards from a server on loopback, {ROUNDS} rounds in turn,",
        f"{MACHINE}. Whole processes; yi-tune's verifies every sha256 and reads",
        "the shards' headers besides. The server is written in Python and shares the cores; over a real network both",
        "wait for the same bytes.",
        "",
        *table("", "seconds, each round", "median"),
    ]
    for name, took in seconds.items():
        each = ", ".join(f"{value:.2f}" for value in took)
        lines.append(f"| {name} | {each} | {statistics.median(took):.2f} |")
    lines += ["", f"Ratio of the medians: **{ours / theirs:.2f}**."]
    write(DOCS / "bench-download.md", "Downloading", "download", lines)


if __name__ == "__main__":
    main()
