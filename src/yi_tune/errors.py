"""The one exception that a user reads, and two helpers for its text."""

from difflib import get_close_matches
from gettext import gettext
from gettext import gettext as _


class YiTuneError(Exception):
    """An error that the user can mend: `message` says what happened, `hint` what to do about it.

    Both are put into the user's language, with the values in place of their {names} if there are any.
    """

    def __init__(self, message: str, hint: str = "", **values: object) -> None:
        told = (text and gettext(text) for text in (message, hint))  # of "" gettext makes something else
        self.message, self.hint = (text.format(**values) if values else text for text in told)
        super().__init__(self.message)


def did_you_mean(word: str, known: list[str]) -> str:
    """A suggestion for a mistyped `word`, or the whole list when nothing is near and it is short; "" of none."""
    if near := get_close_matches(word.lower(), known, n=1):
        return _("Did you mean {near}?").format(near=near[0])
    return _("Known: {known}.").format(known=", ".join(known)) if 0 < len(known) <= 20 else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` came of too little memory: torch, cuBLAS and bitsandbytes say so in words of their own."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in said for words in ("out of memory", "allocate memory", "bad_alloc", "alloc_failed")
    )
