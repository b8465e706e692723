"""The real client of Hugging Face uploads an export to a server on loopback."""

import os
from pathlib import Path

import pytest

from tests.hubs import ALWAYS, Fault, Uploads, refusing
from yi_tune.errors import YiTuneError
from yi_tune.hubs import HuggingFace
from yi_tune.hubs.push import check_repository, push
from yi_tune.output import err

TOKEN = "hf_secret"  # noqa: S105
REPOSITORY = "lilei/xiaoyi"


@pytest.fixture(autouse=True)
def _client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is logged in, and keeps nothing."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "an export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# 小易\n", encoding="utf-8")
    (folder / ".lock").touch()
    return folder


def pushed(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch, *, public: bool = False) -> str:
    monkeypatch.setattr(HuggingFace, "endpoint", address)
    return push(folder, REPOSITORY, public=public, console=err)


@pytest.mark.parametrize(
    ("existing", "public", "created"), [(False, False, "private"), (False, True, "public"), (True, False, None)]
)
def test_push(
    existing: bool, public: bool, created: str | None, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Uploads(token=TOKEN, existing=(REPOSITORY,) if existing else ()) as hub:
        assert REPOSITORY in pushed(exported, hub.address, monkeypatch, public=public)
    assert hub.created.get(REPOSITORY) == created
    contents = {path.name: path.read_bytes() for path in exported.iterdir() if path.name != ".lock"}
    assert hub.received[REPOSITORY] == contents
    assert hub.leaks == []


@pytest.mark.parametrize(
    ("pattern", "status", "said"),
    [
        ("/api/repos/create", 401, "does not know this token"),
        ("*/preupload/*", 403, "this account has no access"),
        ("*/commit/*", 409, "somebody else changed"),
        ("*/objects/batch", 404, "there is no"),
    ],
)
def test_refused(pattern: str, status: int, said: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Uploads(token=TOKEN) as hub:
        hub.faults.append(Fault(pattern, "status", times=ALWAYS, status=status))
        with pytest.raises(YiTuneError, match=said) as caught:
            pushed(exported, hub.address, monkeypatch)
    # It need not be exported again, and by hand it is no more public.
    assert f"hf upload --private {REPOSITORY} '{exported}'" in caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint
    assert hub.received == {}


def test_nobody_there(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as address, pytest.raises(YiTuneError, match="cannot be reached"):
        pushed(exported, address, monkeypatch)


@pytest.mark.parametrize("repository", ["xiaoyi", "a/b/c", "", "../x", "小/易"])
def test_no_repository(repository: str) -> None:
    with pytest.raises(YiTuneError, match="no repository"):
        check_repository(repository)


def test_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(YiTuneError, match="there is none"):
        check_repository(REPOSITORY)
