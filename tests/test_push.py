"""The real client of Hugging Face uploads an export to a server on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hubs import ALWAYS, Fault, Uploads, refusing
from tests.hubs.machine import environment
from yi_tune.errors import YiTuneError
from yi_tune.hubs.push import check_repository

TOKEN = "hf_secret"  # noqa: S105
REPOSITORY = "lilei/xiaoyi"
# The client reads its variables when it is imported: a process of its own.
PUSH = """
import sys
from pathlib import Path
from yi_tune.errors import YiTuneError
from yi_tune.hubs.push import check_repository, push
from yi_tune.screen import err
try:
    check_repository(sys.argv[2])
    print(push(Path(sys.argv[1]), sys.argv[2], public=len(sys.argv) > 3, console=err))
except YiTuneError as error:
    sys.exit(f"{error.message} | {error.hint}")
"""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "an export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# 小易\n", encoding="utf-8")
    (folder / ".lock").touch()
    return folder


def push(folder: Path, home: Path, hub: str, *options: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    own = {"HF_TOKEN": token} if token else {}
    return subprocess.run(
        [sys.executable, "-c", PUSH, folder, REPOSITORY, *options],
        env=environment(home, huggingface=hub, HF_HUB_DISABLE_XET="1", **own),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize(("options", "visibility"), [((), "private"), (("--public",), "public")])
def test_new_repository(exported: Path, tmp_path: Path, options: tuple[str, ...], visibility: str) -> None:
    with Uploads(token=TOKEN) as hub:
        done = push(exported, tmp_path, hub.address, *options)
    assert done.returncode == 0, done.stderr
    assert REPOSITORY in done.stdout
    assert hub.created == {REPOSITORY: visibility}
    assert hub.received[REPOSITORY] == contents(exported)
    assert hub.leaks == []
    assert TOKEN not in done.stdout + done.stderr


def test_existing_repository_is_written_to(exported: Path, tmp_path: Path) -> None:
    with Uploads(token=TOKEN, existing=(REPOSITORY,)) as hub:
        done = push(exported, tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert hub.created == {}
    assert hub.received[REPOSITORY] == contents(exported)


@pytest.mark.parametrize(
    ("pattern", "status", "said"),
    [
        ("/api/repos/create", 401, "does not know this token"),
        ("/api/repos/create", 403, "this account has no access"),
        ("*/preupload/*", 403, "this account has no access"),
        ("*/commit/*", 409, "somebody else changed"),
        ("*/objects/batch", 404, "there is no"),
    ],
)
def test_refused(exported: Path, tmp_path: Path, pattern: str, status: int, said: str) -> None:
    with Uploads(token=TOKEN) as hub:
        hub.faults.append(Fault(pattern, "status", times=ALWAYS, status=status))
        done = push(exported, tmp_path, hub.address)
    assert done.returncode == 1
    assert said in done.stderr
    # It need not be exported again, and by hand it is no more public.
    assert f"hf upload --private {REPOSITORY} " in done.stderr.replace("\n", " ")
    assert str(exported) in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert hub.received == {}


def test_nobody_there(exported: Path, tmp_path: Path) -> None:
    with refusing() as address:
        done = push(exported, tmp_path, address)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_token(exported: Path, tmp_path: Path) -> None:
    with Uploads(token=TOKEN) as hub:
        done = push(exported, tmp_path, hub.address, token="")
    assert done.returncode == 1
    assert "there is none" in done.stderr
    assert hub.log == []


@pytest.mark.parametrize("repository", ["xiaoyi", "a/b/c", "", "../x", "小/易"])
def test_no_repository(repository: str) -> None:
    with pytest.raises(YiTuneError, match="no repository"):
        check_repository(repository)
