"""The one exception a user ever reads, and what helps to say it well."""

import errno
import os
import shutil
from difflib import get_close_matches
from pathlib import Path

# In bytes: a disk with less than this left is why a file could not be written.
_FULL = 10_000_000


class YiTuneError(Exception):
    """Something the user can mend: what happened, and in `hint` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def did_you_mean(word: str, known: list[str]) -> str:
    """A suggestion for a mistyped `word`, or the whole list when nothing is near and it is short."""
    if near := get_close_matches(word.lower(), known, n=1):
        return f"Did you mean {near[0]}?"
    return f"Known: {', '.join(known)}." if len(known) <= 20 else ""


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether `error` came of a full disk, the one of `folder`: each writer says so in its own way, or not at all."""
    reason: BaseException | None = error
    while reason:
        if os.strerror(errno.ENOSPC) in str(reason):
            return True
        reason = reason.__cause__ or reason.__context__
    return shutil.disk_usage(folder).free < _FULL


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` came of too little memory: torch's allocators and bitsandbytes say so in words of their own."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in said for words in ("out of memory", "allocate memory", "bad_alloc")
    )
