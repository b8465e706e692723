"""Questions to the person at the terminal."""

from collections.abc import Callable

from prompt_toolkit import prompt
from prompt_toolkit.document import Document
from prompt_toolkit.validation import ValidationError, Validator

from yi_tune.errors import YiTuneError


class _Checked(Validator):
    """Keeps the line at the prompt, with the reason under it, as long as `check` raises YiTuneError for it."""

    def __init__(self, check: Callable[[str], object]) -> None:
        self._check = check

    def validate(self, document: Document) -> None:
        try:
            self._check(document.text)
        except YiTuneError as error:
            raise ValidationError(len(document.text), f"{error.message} {error.hint}".rstrip()) from None


def ask(question: str, check: Callable[[str], object]) -> str:
    """An answer for which `check` raises no YiTuneError. Ctrl-C raises KeyboardInterrupt, and Ctrl-D EOFError."""
    return prompt(f"{question} ", validator=_Checked(check), validate_while_typing=False)


def agreed(question: str) -> bool:
    """Whether the answer is yes, as it is to nothing but Enter."""

    def check(answer: str) -> None:
        if answer.strip().lower() not in ("", "y", "yes", "n", "no"):
            raise YiTuneError("Answer y or n.")

    return not ask(f"{question} [Y/n]", check).strip().lower().startswith("n")
