"""The one exception that a user reads, and two helpers for its text."""

from difflib import get_close_matches


class YiTuneError(Exception):
    """An error that the user can mend: `message` says what happened, `hint` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def did_you_mean(word: str, known: list[str]) -> str:
    """A suggestion for a mistyped `word`, or the whole list when nothing is near and it is short; "" of none."""
    if near := get_close_matches(word.lower(), known, n=1):
        return f"Did you mean {near[0]}?"
    return f"Known: {', '.join(known)}." if 0 < len(known) <= 20 else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` came of too little memory: torch, cuBLAS and bitsandbytes say so in words of their own."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in said for words in ("out of memory", "allocate memory", "bad_alloc", "alloc_failed")
    )
