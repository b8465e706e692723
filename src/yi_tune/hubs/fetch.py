"""Fetches files of a hub's repository: resumed where a call before broke off, retried, and checked."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from gettext import gettext as _
from pathlib import Path

from rich import progress as bars
from rich.console import Console
from rich.filesize import decimal

from yi_tune.hubs import Hub, HubError, explain
from yi_tune.models import FileOrigin, sha256

# Files that are fetched at a time.
_WORKERS = 4
# Seconds to wait after a file's request has failed, once more in a row without a byte more; then it is given up.
_PAUSES = (1, 2, 4, 8)


class Fetcher:
    """Fetches files of a repository at `commit` into `folder`, where each has its name once it is whole and right."""

    def __init__(self, hub: Hub, commit: str | None, folder: Path, console: Console) -> None:
        import httpx

        self._hub, self._commit, self._folder, self._console = hub, commit, folder, console
        timeout = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", 10))
        self._client = httpx.Client(follow_redirects=True, timeout=timeout)
        self._stop = threading.Event()
        columns = (bars.BarColumn(20), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
        self._bar = bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        # What a call before had fetched says nothing about the speed of this one.
        self._task = self._bar.add_task("", completed=size_of(folder))

    def fetch_all(self, files: dict[str, FileOrigin]) -> dict[str, FileOrigin]:
        """Fetch several at a time, as `fetch` does, under a bar, or with a line for each; returns them with sha256."""
        total = sum(file.size for file in files.values())
        self._bar.update(self._task, total=total)
        pool, fetched = ThreadPoolExecutor(_WORKERS), {}
        try:
            with self._bar:
                jobs = {pool.submit(self.fetch, name, file): name for name, file in files.items()}
                for job in as_completed(jobs):
                    fetched[jobs[job]] = job.result()
                    if not self._console.is_terminal:
                        size = size_of(self._folder)
                        self._console.print(
                            _("{file} is here: {size} of {total}").format(
                                file=jobs[job], size=decimal(size), total=decimal(total)
                            )
                        )
        except BaseException:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        return fetched

    def fetch(self, name: str, file: FileOrigin) -> FileOrigin:
        """See to it that a file is here; returns it with its sha256.

        Raises HubError when it comes wrong twice or not at all, OSError when it cannot be written.
        """
        path, part = self._folder / name, self._folder / f"{name}.incomplete"
        path.parent.mkdir(parents=True, exist_ok=True)
        if digest := right(path, file):
            return FileOrigin(file.size, digest)
        path.unlink(missing_ok=True)
        wrong = _("{name} came with another size or checksum than the hub lists").format(name=name)
        for _attempt in range(2):
            self._receive(name, file.size, part)
            if digest := right(part, file):
                part.replace(path)
                return FileOrigin(file.size, digest)
            part.unlink()
            self._console.print(f"{self._hub.title}: {wrong}.")
        raise HubError("{wrong}, twice.", wrong=wrong)

    def _receive(self, name: str, size: int, part: Path) -> None:
        """Bring `part` to `size` bytes, or to where the hub's file ends."""
        import httpx

        part.touch()
        failed = 0
        while (start := part.stat().st_size) < size:
            try:
                return self._stream(name, part, start)
            except httpx.HTTPError as error:
                failed = 1 if part.stat().st_size > start else failed + 1
                status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 500
                if failed > len(_PAUSES) or (status < 500 and status not in (408, 429)):
                    raise explain(
                        self._hub, error, _("{name} in {what}").format(name=name, what=self._hub.wanted)
                    ) from error
            self._stop.wait(_PAUSES[failed - 1])

    def _stream(self, name: str, part: Path, start: int) -> None:
        """Receive what follows the first `start` bytes, by one request."""
        url, headers = self._hub.request(name, self._commit)
        headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with self._client.stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            # A server that knows no ranges sends all of it.
            with part.open("ab" if response.status_code == 206 else "wb") as out:
                for block in response.iter_bytes(1 << 18):  # of 1 MB, make bench-download took longer
                    if self._stop.is_set():
                        raise HubError("another file failed.")
                    out.write(block)
                    self._bar.update(self._task, completed=size_of(self._folder))


def right(path: Path, file: FileOrigin) -> str:
    """The sha256 of what is in `path`, if it has the size and checksum of `file`; otherwise "".

    A checksum "git ID", of a file that a hub keeps in git itself, is the ID of the object there.
    """
    if not path.is_file() or path.stat().st_size != file.size:
        return ""
    digest, expected = sha256(path), file.sha256 or ""
    found = digest
    if expected.startswith("git "):
        blob = hashlib.sha1(b"blob %d\0" % file.size + path.read_bytes(), usedforsecurity=False)
        found = f"git {blob.hexdigest()}"
    return digest if expected in ("", found) else ""


def size_of(folder: Path) -> int:
    """Bytes of the files in `folder` and below, one of which may just get another name."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += 0 if path.is_dir() else path.stat().st_size
    return total
