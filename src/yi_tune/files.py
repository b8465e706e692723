"""The shipped files, and files and folders that are written whole or not at all, by one process at a time."""

import errno
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from gettext import gettext as _
from pathlib import Path

from yi_tune.errors import YiTuneError

_PACKAGE = Path(__file__).parent
# A wheel carries both folders inside the package (pyproject.toml, force-include); an editable install leaves them
# at the top of the checkout.
_ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parents[1]
CONFIGS = _ROOT / "configs"
DATA = _ROOT / "data"
# The chat template trained with: LLaMA-Factory's `yi` in transformers' form, which is what nano ships.
CHAT_TEMPLATE = DATA / "nano" / "chat_template.jinja"

# In bytes: a disk with less than this left is why a file could not be written.
_FULL = 10_000_000


def write_whole(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a text file in UTF-8: all of it, or nothing, and then what was there before stays.

    `mode`, less what the user's umask forbids, says who may read it.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        part.touch(mode)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def put_in_place(part: Path, target: Path) -> None:
    """Rename the folder `part` to `target`; what it replaces is there until then."""
    old = Path(tempfile.mkdtemp(prefix=f"{target.name}.old-", dir=target.parent))
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def hold(lock: Path, busy: YiTuneError, *, patience: float = 0.5) -> AbstractContextManager[object]:
    """Hold the file `lock` until the context returned ends, or the process, however it ends.

    Raises `busy` when another process still holds it after `patience` seconds (-1 waits for ever), and YiTuneError
    when the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # not at the start: its import takes a fifth of the time of --help

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(lock, timeout=patience).acquire()
    except Timeout:
        raise busy from None
    except OSError as error:
        remedy = _("Choose another place: --workspace DIR, for an export --to DIR")
        raise YiTuneError(
            _("{folder} cannot be written: {reason}.").format(folder=lock.parent, reason=error.strerror), remedy
        ) from None


def is_held(lock: Path) -> bool:
    """Whether a process holds the file `lock`; it is not made where it is missing."""
    from filelock import FileLock, Timeout

    try:
        if lock.exists():
            FileLock(lock, timeout=0).acquire().lock.release()
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written is worked on by nobody
        pass
    return False


def check_room(folder: Path, needed: int) -> None:
    """Raise YiTuneError when the disk of `folder` has fewer than `needed` bytes free."""
    from rich.filesize import decimal  # not at the start: --help does without rich

    if needed > (free := shutil.disk_usage(folder).free):
        raise YiTuneError(
            "{needed} are needed, and the disk of {folder} has {free} free.",
            "Free some space, or choose another place: --workspace DIR, for an export --to DIR",
            needed=decimal(needed),
            folder=folder,
            free=decimal(free),
        )


def disk_full(error: BaseException, folder: Path) -> YiTuneError | None:
    """The error for the user if `error` came of a full disk, the one of `folder`: few writers say so themselves."""
    reasons = f"{error} {error.__cause__ or error.__context__}"
    if os.strerror(errno.ENOSPC) not in reasons and shutil.disk_usage(folder).free >= _FULL:
        return None
    return YiTuneError(
        "The disk of {folder} is full.",
        "Free some space, then type the same command; `train` without --fresh.",
        folder=folder,
    )
