"""Questions to the person at the terminal."""

from collections.abc import Callable

from prompt_toolkit import prompt

from yi_tune.errors import YiTuneError
from yi_tune.output import err


def ask(question: str, check: Callable[[str], object]) -> str:
    """An answer for which `check` raises no YiTuneError; for another one its reason is told. Ctrl-C raises
    KeyboardInterrupt, and Ctrl-D EOFError.
    """
    while True:
        answer = prompt(f"{question} ")
        try:
            check(answer)
        except YiTuneError as error:
            err.print(f"{error.message} {error.hint}".rstrip(), style="red")
        else:
            return answer


def agreed(question: str) -> bool:
    """Whether the answer is yes, as it is to nothing but Enter."""

    def check(answer: str) -> None:
        if answer.strip().lower() not in ("", "y", "yes", "n", "no"):
            raise YiTuneError("Answer y or n.")

    return not ask(f"{question} [Y/n]", check).strip().lower().startswith("n")
