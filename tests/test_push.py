"""An export goes to a hub by the calls of its client, and what the hub says becomes a sentence."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock, create_autospec

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from tests.hubs import ALWAYS, HUBS, Fault, ModelScope
from yi_tune.errors import YiTuneError
from yi_tune.hubs import HuggingFace, make, push, to_push
from yi_tune.output import err

REPOSITORY = "lilei/xiaoyi"
EXPORT = Path("/an export")
Point = Callable[..., None]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Hugging Face's client, which takes only calls that the real one takes."""
    api: MagicMock = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl(f"https://huggingface.co/{REPOSITORY}")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda _: api)
    return api


@pytest.mark.parametrize("public", [False, True])
def test_huggingface(public: bool, api: MagicMock) -> None:
    hub = HuggingFace(REPOSITORY, None)
    assert make(hub, public=public) == f"https://huggingface.co/{REPOSITORY}"
    api.create_repo.assert_called_once_with(REPOSITORY, private=not public, exist_ok=True)
    push(hub, EXPORT, err)
    uploaded = api.upload_folder.call_args.kwargs
    assert (uploaded["repo_id"], uploaded["folder_path"]) == (REPOSITORY, EXPORT)


def refused(status: int) -> Exception:
    response = httpx.Response(status, request=httpx.Request("POST", "https://huggingface.co"))
    return HfHubHTTPError("no", response=response)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refused(401), "does not know this token"),
        (refused(403), "this account has no access"),
        (refused(409), "HTTP 409"),
        (httpx.ConnectError("refused"), "no whole answer"),
    ],
)
def test_refused(error: Exception, said: str, api: MagicMock) -> None:
    hub = HuggingFace(REPOSITORY, None)
    api.create_repo.side_effect = api.upload_folder.side_effect = error
    with pytest.raises(YiTuneError, match=said):
        make(hub, public=False)
    with pytest.raises(YiTuneError, match=said) as caught:
        push(hub, EXPORT, err)
    assert f"The export is in {EXPORT}. The same command again" in caught.value.hint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export with a file that is kept in git, and a large one."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("# 小易\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    return folder


@pytest.mark.parametrize("public", [False, True])
def test_modelscope(
    public: bool, point: Point, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("modelscope_hub._upload.UPLOAD_RECOVERY_ENABLED", False)
    monkeypatch.setattr("modelscope_hub._upload.time.sleep", lambda _: None)
    with ModelScope({"other.txt": b"stays"}, token="right") as server:  # noqa: S106
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "wrong")
        point(modelscope=server.address)
        with pytest.raises(YiTuneError, match="does not know this token"):
            make(to_push("modelscope", REPOSITORY), public=public)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "right")
        point(modelscope=server.address)
        hub = to_push("modelscope", REPOSITORY)
        assert make(hub, public=public) == f"{server.address}/models/{REPOSITORY}"
        # The network is lost before the weights are there.
        server.fail(Fault("/storage/*", "reset", ALWAYS))
        with pytest.raises(YiTuneError, match="The upload failed") as caught:
            push(hub, folder, err)
        assert "The same command again uploads what is missing" in caught.value.hint
        server.fail()
        assert make(hub, public=not public)  # it is there, and stays as visible as it was
        push(hub, folder, err)
        assert server.files == {"other.txt": b"stays", **files}
        assert server.made == {REPOSITORY: 5 if public else 1}
    assert {path.name for path in folder.iterdir()} == set(files)
    assert not capfd.readouterr().out  # --json prints there


@pytest.mark.parametrize(
    ("hub", "repository", "said"),
    [
        *((hub, name, "no repository") for hub in HUBS for name in ("xiaoyi", "a/b/c", "", "../x", "小/易")),
        *(
            ("huggingface", f"lilei/{name}", "no name for Hugging Face")
            for name in ("xiao--yi", "xiaoyi.git", "x" * 97)
        ),
    ],
)
def test_no_name_of_a_repository(hub: str, repository: str, said: str) -> None:
    with pytest.raises(YiTuneError, match=said):
        to_push(hub, repository)


@pytest.mark.parametrize("hub", HUBS)
def test_no_token(hub: str, point: Point) -> None:
    point(huggingface="http://127.0.0.1:9")
    with pytest.raises(YiTuneError, match="there is none"):
        to_push(hub, REPOSITORY)
