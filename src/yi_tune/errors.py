"""The one exception that a user reads, and two helpers for its text."""

from difflib import get_close_matches
from gettext import gettext as _

from yi_tune.language import Text, kept, told


class YiTuneError(Exception):
    """An error that the user can mend: `message` says what happened, `hint` what to do about it.

    Both are put into the user's language, with the values in place of their {names} if there are any. Logs have it in
    English, and `text` is for a file to keep.
    """

    def __init__(self, message: str, hint: Text = "", **values: object) -> None:
        self.text: Text = kept(message, **values)
        self.message, self.hint = told(self.text), told(kept(hint, **values) if isinstance(hint, str) else hint)
        super().__init__(told(self.text, str))


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
