"""Questions to the person at the terminal."""

import sys
import termios
from collections.abc import Callable
from contextlib import suppress

from prompt_toolkit import prompt
from prompt_toolkit.application import get_app_session
from prompt_toolkit.input.typeahead import clear_typeahead

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
            err.print(f"{error.message}\n{error.hint}".rstrip(), style="red")
        else:
            return answer


def agreed(question: str) -> bool:
    """Whether the answer is yes, as it is to nothing but Enter. Keys that were pressed before it is asked are none."""

    def check(answer: str) -> None:
        if answer.strip().lower() not in ("", "y", "yes", "n", "no"):
            raise YiTuneError("Answer y or n.")

    with suppress(OSError, termios.error):  # stdin is no terminal
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        clear_typeahead(get_app_session().input)  # what came together with the Enter of the last answer
    return not ask(f"{question} [Y/n]", check).strip().lower().startswith("n")
