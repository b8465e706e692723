"""Puts an export on Hugging Face, through huggingface_hub."""

import os
import re
import shlex
from pathlib import Path

from rich.console import Console

from yi_tune.errors import YiTuneError

_LOGIN = "Log in with a token that may write: HF_TOKEN=... yi-tune export ..., or once: hf auth login"


def check_repository(repository: str) -> None:
    """Raise YiTuneError for a repository that cannot be, or when there is no token: before anything is exported."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise YiTuneError(f"--push {repository!r} is no repository.", "Write it as OWNER/NAME.")
    if get_token() is None:
        raise YiTuneError("Hugging Face takes uploads only with a token, and there is none.", _LOGIN)


def push(folder: Path, repository: str, *, public: bool, console: Console) -> str:
    """Upload `folder` to `repository`, which is made if it is not there; returns its address.

    A repository that is there keeps its visibility, and the files of other names in it. Raises YiTuneError when the
    hub refuses or cannot be reached; the export is then kept.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    command = ["hf", "upload", *([] if public else ["--private"]), repository, str(folder)]
    again = f"The export is in {folder}. To upload only: {shlex.join(command)}"
    api = HfApi()
    console.print(f"Uploading to {repository} ...", markup=False)
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="yi-tune export", ignore_patterns=[".*"]
        )
    except HfHubHTTPError as error:
        raise _refused(repository, error.response.status_code, again) from error
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise YiTuneError(f"The upload to {repository} broke off: {type(error).__name__}.", again) from error
    return str(url)


def _refused(repository: str, status: int, again: str) -> YiTuneError:
    """What an HTTP status means for the user."""
    what = {
        401: ("Hugging Face does not know this token.", _LOGIN),
        403: (
            f"This token may not write to {repository}.",
            f"Is the owner right, and the token one for writing? {_LOGIN}",
        ),
        409: (f"Somebody else changed {repository} meanwhile.", "Try again."),
        429: ("Hugging Face says too many requests (HTTP 429).", "Wait some minutes."),
    }
    message, hint = what.get(status, (f"Hugging Face fails (HTTP {status}).", "Try again later."))
    return YiTuneError(message, f"{hint}\n{again}")
