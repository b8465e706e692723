"""Puts an export on Hugging Face, through huggingface_hub."""

import re
import shlex
from pathlib import Path

from rich.console import Console

from yi_tune.errors import YiTuneError
from yi_tune.hubs import HuggingFace


def check_repository(repository: str) -> None:
    """Raise YiTuneError for a repository that cannot be, or when there is no token: before anything is exported."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise YiTuneError(f"--push {repository!r} is no repository.", "Write it as OWNER/NAME.")
    if get_token() is None:
        raise YiTuneError(
            "Hugging Face takes uploads only with a token that may write, and there is none.", HuggingFace.login
        )


def push(folder: Path, repository: str, *, public: bool, console: Console) -> str:
    """Upload `folder` to `repository`, which is made if it is not there; returns its address.

    A repository that is there keeps its visibility, and the files of other names in it. Raises YiTuneError when the
    hub refuses or cannot be reached; the export is then kept.
    """
    import httpx
    from huggingface_hub import HfApi

    hub = HuggingFace(repository, None)
    api = HfApi(hub.endpoint)
    console.print(f"Uploading to {repository} ...")
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="yi-tune export", ignore_patterns=[".*"]
        )
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = hub.explain(error, repository)
        command = ["hf", "upload", *([] if public else ["--private"]), repository, str(folder)]
        again = f"The export is in {folder}. To upload only: {shlex.join(command)}"
        raise YiTuneError(f"The upload failed: {reason.message}", f"{reason.hint}\n{again}") from error
    return str(url)
