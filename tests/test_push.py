"""An export goes to Hugging Face by the calls of its client, and what that one says becomes a sentence."""

from pathlib import Path
from unittest.mock import MagicMock, create_autospec

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from yi_tune.errors import YiTuneError
from yi_tune.hubs import check_repository, push
from yi_tune.output import err

REPOSITORY = "lilei/xiaoyi"
EXPORT = Path("/an export")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The client, which takes only calls that the real one takes."""
    api: MagicMock = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl(f"https://huggingface.co/{REPOSITORY}")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda _: api)
    return api


@pytest.mark.parametrize("public", [False, True])
def test_push(public: bool, api: MagicMock) -> None:
    assert push(EXPORT, REPOSITORY, public=public, console=err) == f"https://huggingface.co/{REPOSITORY}"
    api.create_repo.assert_called_once_with(REPOSITORY, private=not public, exist_ok=True)
    uploaded = api.upload_folder.call_args.kwargs
    assert (uploaded["repo_id"], uploaded["folder_path"]) == (REPOSITORY, EXPORT)


def refused(status: int) -> Exception:
    response = httpx.Response(status, request=httpx.Request("POST", "https://huggingface.co"))
    return HfHubHTTPError("no", response=response)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ("create_repo", refused(401), "does not know this token"),
        ("upload_folder", refused(403), "this account has no access"),
        ("upload_folder", refused(409), "HTTP 409"),
        ("create_repo", httpx.ConnectError("refused"), "no whole answer"),
    ],
)
def test_refused(call: str, error: Exception, said: str, api: MagicMock) -> None:
    getattr(api, call).side_effect = error
    with pytest.raises(YiTuneError, match=said) as caught:
        push(EXPORT, REPOSITORY, public=False, console=err)
    # It need not be exported again, and by hand it is no more public.
    assert f"hf upload --private {REPOSITORY} '{EXPORT}'" in caught.value.hint


@pytest.mark.parametrize("repository", ["xiaoyi", "a/b/c", "", "../x", "小/易"])
def test_no_repository(repository: str) -> None:
    with pytest.raises(YiTuneError, match="no repository"):
        check_repository(repository)


def test_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(YiTuneError, match="there is none"):
        check_repository(REPOSITORY)
