"""`yi-tune download` with the real huggingface_hub against a small hub on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from yi_tune.models import CATALOGUE

REPOSITORY = "01-ai/Yi-1.5-6B-Chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves nano's files as REPOSITORY, and a few that nobody needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        nano = CATALOGUE["nano"].path(Path())
        self.files = {file.name: file.read_bytes() for file in nano.iterdir() if file.suffix != ".md"}
        self.files |= {"pytorch_model.bin": b"pickle", "modeling_yi.py": b"code", "README.md": b"text"}
        self.fetched: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    """The calls of the hub that a download makes: the model, its list of files, a file."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            files = self.server.files.items()
            tree = [{"type": "file", "path": file, "size": len(text), "oid": "0"} for file, text in files]
            content = json.dumps(tree).encode()
        elif path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": file} for file in self.server.files]
            content = json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(f"/{REPOSITORY}/resolve/") and name in self.server.files:
            content = self.server.files[name]
            self.server.fetched += [name] * body
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')  # noqa: S324
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def download(folder: Path, endpoint: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "yi_tune", "download", *arguments],
        cwd=folder,
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "MODELSCOPE_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_download_fetches_what_is_needed_and_train_finds_it(tmp_path: Path, hub: Hub) -> None:
    done = download(tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    model = tmp_path / "models" / "Yi-1.5-6B-Chat"
    wanted = set(hub.files) - {"pytorch_model.bin", "modeling_yi.py", "README.md"}
    assert {file.name for file in model.iterdir() if file.is_file()} == wanted
    for file in wanted:
        assert (model / file).read_bytes() == hub.files[file]
    before = list(hub.fetched)
    assert download(tmp_path, hub.address).returncode == 0
    assert hub.fetched == before
    train = [sys.executable, "-m", "yi_tune", "train", "--name", "N", "--author", "A", "--dry-run"]
    dry = subprocess.run(train, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert str(model) in dry.stdout
    assert "not downloaded" not in dry.stderr


def test_unreachable_hub(tmp_path: Path) -> None:
    done = download(tmp_path, "http://127.0.0.1:9", "--source", "huggingface")
    assert done.returncode == 1
    assert "could not be downloaded" in done.stderr
    assert "--source modelscope" in done.stderr
    assert "Traceback" not in done.stderr
