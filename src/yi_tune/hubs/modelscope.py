"""Models on ModelScope, through modelscope_hub, which is the modelscope package without its import of torch."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yi_tune.hubs.hub import PATIENCE, WORKERS, HubError, Listing, RemoteFile, mirror, refused
from yi_tune.models import sha256
from yi_tune.progress import Transfer

_LOGIN = "MODELSCOPE_API_TOKEN=... yi-tune download, or once: modelscope login"


class ModelScope:
    """A repository on ModelScope, or on the site that MODELSCOPE_ENDPOINT or MODELSCOPE_DOMAIN names."""

    name = "modelscope"
    title = "ModelScope"

    def __init__(self, repository: str, revision: str | None) -> None:
        self.repository, self._revision = repository, revision
        self._what = repository if revision is None else f"{repository} at revision {revision!r}"
        # The client reads these when it is imported. Its own 4 tries of 15 s make a dead hub a minute's wait.
        os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS", str(PATIENCE))
        os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")
        # Its bars would fill the log: yi-tune has its own.
        os.environ.setdefault("TQDM_DISABLE", "1")

    @property
    def endpoint(self) -> str:
        from modelscope_hub.config import get_default_config

        return str(get_default_config().endpoint)

    def cached(self) -> list[Path]:
        from modelscope_hub import HubApi
        from modelscope_hub.config import get_default_config
        from modelscope_hub.errors import CacheNotFound

        try:
            return [HubApi().download_repo(self.repository, "model", revision=self._revision, local_files_only=True)]
        except CacheNotFound:
            # The versions of 2023 and 2024, which the client no longer looks for. (The modelscope package does, but
            # its import takes torch with it.) They kept no revisions.
            owner, name = self.repository.split("/")
            old = get_default_config().cache_dir / "hub" / owner / name.replace(".", "___")
            return [old] if old.is_dir() and self._revision is None else []

    def listing(self) -> Listing:
        from modelscope_hub import HubApi

        try:
            entries = HubApi().legacy.list_repo_files(self.repository, "model", revision=self._revision or "master")
            entries = [entry for entry in entries if entry.get("Type") != "tree"]
            files = [RemoteFile(entry["Path"], int(entry["Size"]), entry.get("Sha256") or None) for entry in entries]
        except Exception as error:
            raise self._explain(error, self._what) from error
        # The list tells each file's last commit; the newest of them is where the branch stands.
        newest: dict[str, Any] = max(entries, key=lambda entry: entry.get("CommittedDate") or 0, default={})
        return Listing(newest.get("Revision"), tuple(files))

    def fetch(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, transfer: Transfer) -> dict[str, str]:
        from modelscope_hub import HubApi

        client = logging.getLogger("modelscope_hub.download")
        client.addFilter(damaged := _Damaged(transfer))
        try:
            # Resumes, takes the sha256 on the way, and fetches again what comes damaged: twice at most.
            HubApi().download_repo(
                self.repository,
                "model",
                revision=self._revision,
                local_dir=folder,
                file_list=[{"Path": file.name, "Size": file.size, "Sha256": file.sha256} for file in files],
                progress_callbacks=[_callback(transfer.at)],
                max_workers=WORKERS,
            )
        except Exception as error:
            raise self._explain(error, self._what) from error
        finally:
            client.removeFilter(damaged)
        return {file.name: file.sha256 or sha256(folder / file.name) for file in files}

    def _explain(self, error: BaseException, what: str) -> HubError:
        """What a failure of the client means, when it was asked for `what`; raises one of the disk as it is."""
        import requests
        from modelscope_hub import errors

        if isinstance(error, OSError) and not isinstance(error, requests.RequestException) and error.errno is not None:
            raise error
        if isinstance(error, errors.FileDownloadError) and error.failed_files:
            name, first = next(iter(error.failed_files.items()))
            if isinstance(first, errors.FileIntegrityError):
                how = "in another size" if isinstance(first, errors.FileSizeMismatchError) else "with another checksum"
                return HubError(f"{name} came {how} than it ought to have, more than once.")
            return self._explain(first, f"{name} in {self.repository}")
        if isinstance(error, errors.APIError):
            return refused(what, error.status_code, _LOGIN)
        site = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or self.title
        if isinstance(error, errors.RequestTimeoutError):
            return HubError(f"{site} does not answer.", mirror("MODELSCOPE_ENDPOINT"))
        if isinstance(error, (errors.NetworkError, requests.ConnectionError)):
            return HubError(f"{site} cannot be reached, or breaks off.", mirror("MODELSCOPE_ENDPOINT"))
        return HubError(f"its answer makes no sense ({type(error).__name__}: {error}).", mirror("MODELSCOPE_ENDPOINT"))


class _Damaged(logging.Filter):
    """Tells the user of a damaged file, of which the client says only in its log that it fetches it again."""

    def __init__(self, transfer: Transfer) -> None:
        super().__init__()
        self._transfer = transfer

    def filter(self, record: logging.LogRecord) -> bool:
        if "validation failed" in str(record.msg) and isinstance(record.args, tuple):
            kind, name = record.args[:2]
            how = "in another size" if kind == "Size" else "with another checksum"
            self._transfer.say(f"{ModelScope.title}: {name} came {how} than it ought to have. Fetching it once more.")
        return True


def _callback(at: Callable[[str, int], None]) -> type:
    """A progress callback as the client wants it: a class, of which it makes one for every file."""
    from modelscope_hub import ProgressCallback

    class Callback(ProgressCallback):
        done = 0

        def update(self, size: int) -> None:
            self.done += size
            at(self.filename, self.done)

    return Callback
