"""Models on Hugging Face, through huggingface_hub."""

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from yi_tune.hubs.hub import PATIENCE, WORKERS, HubError, Listing, RemoteFile, mirror, refused
from yi_tune.models import NEEDED
from yi_tune.progress import Transfer

# Times in a row that a connection may break without a byte more, as in huggingface_hub's own http_get.
_TRIES = 5
_LOGIN = "HF_TOKEN=... yi-tune download, or once: hf auth login"


class HuggingFace:
    """A repository on Hugging Face, or on the mirror that HF_ENDPOINT names."""

    name = "huggingface"
    title = "Hugging Face"

    def __init__(self, repository: str, revision: str | None) -> None:
        self.repository, self._revision = repository, revision
        # The client reads it when it is imported. Otherwise it first asks the hub something else, for up to 3 s.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    @property
    def endpoint(self) -> str:
        from huggingface_hub import constants

        return constants.ENDPOINT

    def cached(self) -> list[Path]:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            copy = snapshot_download(
                self.repository, revision=self._revision, local_files_only=True, allow_patterns=list(NEEDED)
            )
        except (LocalEntryNotFoundError, HFValidationError):
            return []
        return [Path(copy)]

    def listing(self) -> Listing:
        from huggingface_hub import HfApi

        try:
            # With a time limit, the client's own where it is set: snapshot_download waits for ever on a hub that
            # accepts a connection and never answers.
            info = HfApi().model_info(
                self.repository,
                revision=self._revision,
                files_metadata=True,
                timeout=float(os.environ.get("HF_HUB_ETAG_TIMEOUT", PATIENCE)),
            )
        except Exception as error:
            raise self._explain(error, self.repository) from error
        siblings = info.siblings or []
        return Listing(
            info.sha,
            tuple(RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id) for s in siblings),
        )

    def fetch(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, transfer: Transfer) -> dict[str, str]:
        stop = threading.Event()
        pool = ThreadPoolExecutor(WORKERS)
        jobs = {pool.submit(self._fetch, listing, file, folder, transfer, stop): file.name for file in files}
        try:
            digests = {jobs[job]: job.result() for job in as_completed(jobs)}
        except BaseException as error:
            stop.set()
            # After Ctrl-C the process ends at once: a slow hub's next bytes are not waited for.
            pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
            raise
        pool.shutdown()
        return digests

    def _fetch(
        self, listing: Listing, file: RemoteFile, folder: Path, transfer: Transfer, stop: threading.Event
    ) -> str:
        """Fetch a file, once more where it comes damaged; returns its sha256."""
        part = folder / f"{file.name}.incomplete"
        if file.sha256 is None or (part.exists() and part.stat().st_size > file.size):
            part.unlink(missing_ok=True)
        for last in (False, True):
            try:
                digest = self._receive(listing, file, part, transfer, stop)
            except _DamagedError as damage:
                part.unlink()
                if last:
                    raise HubError(f"{damage.message[:-1]}, twice.") from None
                transfer.say(f"{self.title}: {damage.message} Fetching it once more.")
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:  # the disk
                    raise
                raise self._explain(error, f"{file.name} in {self.repository}") from error
            else:
                part.replace(folder / file.name)
                return digest
        raise AssertionError("the last try returns or raises")

    def _receive(
        self, listing: Listing, file: RemoteFile, part: Path, transfer: Transfer, stop: threading.Event
    ) -> str:
        """Bring `part` to its full size; returns its sha256. Raises _DamagedError when it is not what it should be.

        hf_hub_download would begin every file anew in each process, as its partial files have random names, and
        loses up to 10 MB with each connection that breaks; it does not look at the sha256 either.
        """
        import httpx
        from huggingface_hub.errors import HfHubHTTPError

        tries = _TRIES
        while True:
            with _Partial(part, file, transfer, stop) as out:
                before = out.size
                try:
                    if before < file.size or file.size == 0:
                        self._stream(listing, file, out)
                    if not out.right():
                        raise _DamagedError(f"{file.name} came with another checksum than it ought to have.")
                    return out.sha256.hexdigest()
                except httpx.TransportError:
                    tries = _TRIES if out.size > before else tries - 1
                    if not tries:
                        raise
                except HfHubHTTPError as error:
                    tries -= 1
                    if error.response.status_code < 500 or not tries:
                        raise
            if stop.wait(1):
                raise HubError("Another file failed.")

    def _stream(self, listing: Listing, file: RemoteFile, out: "_Partial") -> None:
        """Receive what `out` lacks, by one request."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        url = hf_hub_url(self.repository, file.name, revision=listing.commit)
        headers = build_hf_headers() | ({"Range": f"bytes={out.size}-"} if out.size else {})
        with http_stream_backoff(
            "GET",
            url,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),
            # With the pause that the hub asks for.
            retry_on_status_codes=(408, 429),
        ) as response:
            if response.status_code == 416:
                raise _DamagedError(f"{file.name} came in another size than it ought to have.")
            hf_raise_for_status(response)
            if response.status_code == 200:  # a server that knows no ranges sends all of it
                out.restart()
            for block in response.iter_bytes(1 << 18):  # of 1 MB, make bench-download took longer
                out.write(block)
                if out.size > file.size:
                    break
        if out.size != file.size:
            raise _DamagedError(f"{file.name} came in another size than the {file.size} bytes it ought to have.")

    def _explain(self, error: Exception, what: str) -> HubError:
        """What a failure of the client, when it was asked for `what`, means for the user."""
        import httpx
        from huggingface_hub import constants, errors

        if isinstance(error, HubError):
            return error
        if isinstance(error, errors.HFValidationError):
            return HubError(f"{self.repository!r} can be no id of a model there.")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return HubError("HF_HUB_OFFLINE forbids it.", "Unset HF_HUB_OFFLINE.")
        if isinstance(error, errors.HfHubHTTPError):
            if isinstance(error, errors.RevisionNotFoundError):
                what = f"{self.repository} at revision {self._revision!r}"
            gated = isinstance(error, errors.GatedRepoError)
            return refused(what, 403 if gated else error.response.status_code, _LOGIN)
        if isinstance(error, httpx.TimeoutException):
            return HubError(f"{constants.ENDPOINT} does not answer.", mirror("HF_ENDPOINT"))
        if isinstance(error, httpx.TransportError):
            return HubError(f"{constants.ENDPOINT} cannot be reached, or breaks off.", mirror("HF_ENDPOINT"))
        return HubError(f"its answer makes no sense ({type(error).__name__}: {error}).", mirror("HF_ENDPOINT"))


class _DamagedError(HubError):
    """A file is not what it ought to be."""


class _Partial:
    """A partial file that is hashed on its way to the disk, so that nobody has to read it again."""

    def __init__(self, path: Path, remote: RemoteFile, transfer: Transfer, stop: threading.Event) -> None:
        self._remote, self._transfer, self._stop = remote, transfer, stop
        # Unbuffered: what was received is on the disk even if this process is killed.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._begin()
        while block := self._file.read(1 << 20):
            self._take(block)

    def _begin(self) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % self._remote.size, usedforsecurity=False)

    def _take(self, block: bytes) -> None:
        self.size += len(block)
        self.sha256.update(block)
        if self._remote.sha256 is None:
            self._git.update(block)
        self._transfer.at(self._remote.name, self.size)

    def write(self, block: bytes) -> None:
        if self._stop.is_set():
            raise HubError("Another file failed.")
        written = 0
        while written < len(block):  # a disk that is nearly full takes a part
            written += self._file.write(block[written:])
        self._take(block)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._begin()

    def right(self) -> bool:
        """Whether all that was written has the checksum that the hub tells."""
        if self._remote.sha256 is not None:
            return self.sha256.hexdigest() == self._remote.sha256
        return self._remote.git_sha1 in (None, self._git.hexdigest())

    def __enter__(self) -> "_Partial":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
