"""The commands of a chat: `/help` lists them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from yi_tune.chat.transcript import load_messages, named_file, save_messages
from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.sampling import Sampling

if TYPE_CHECKING:
    from yi_tune.chat.session import Session

Action = Callable[["Session", str], None]


@dataclass(frozen=True)
class Command:
    """What a command takes, what it is for, and what it does."""

    takes: str
    summary: str
    run: Action


def find(name: str) -> Action:
    """What the command does. Raises YiTuneError when there is none of that name."""
    if name not in COMMANDS:
        raise YiTuneError(f"{name} is no command; /help lists them.", did_you_mean(name, list(COMMANDS)))
    return COMMANDS[name].run


def parameters() -> dict[str, type[int] | type[float]]:
    """What /set sets, and its type."""
    return {field.name: float if isinstance(field.default, float) else int for field in fields(Sampling)}


def _retry(session: "Session", _: str) -> None:
    conversation, sampling = session.conversation, session.conversation.sampling
    conversation.last_message()  # nothing is said of the answer where there is no question
    if conversation.unanswered is None and (sampling.temperature == 0 or sampling.seed is not None):
        session.screen.note("Without chance the answer stays the same: /set temperature 0.7 and /set seed none.")
    session.retry()


def _undo(session: "Session", _: str) -> None:
    session.screen.note(f"Taken back: {session.conversation.undo()}")


def _system(session: "Session", text: str) -> None:
    session.conversation.system = text or None
    session.conversation.clear()
    session.screen.note("System prompt set; starting over." if text else "No system prompt; starting over.")


def _set(session: "Session", argument: str) -> None:
    key, _, value = argument.replace("=", " ", 1).partition(" ")
    key, value = key.replace("-", "_"), value.strip()
    types = parameters()
    if key not in types:
        raise YiTuneError(f"{key or 'Nothing'} cannot be set.", did_you_mean(key, list(types)))
    example = "For example: /set temperature 0.7"
    try:
        number: Any = None if (key, value) == ("seed", "none") else types[key](value)
        session.conversation.sampling = replace(session.conversation.sampling, **{key: number})
    except ValueError:
        kind = "a whole number" if types[key] is int else "a number"
        raise YiTuneError(f"{key} takes {kind}, not {value or 'nothing'}.", example) from None
    except YiTuneError as error:
        # It speaks of options: --top-p is top_p here.
        message = re.sub("--([a-z-]+)", lambda option: option[1].replace("-", "_"), error.message)
        raise YiTuneError(message, example) from None
    session.screen.note(f"{key} is {'none' if number is None else number}.")


def _params(session: "Session", _: str) -> None:
    conversation = session.conversation
    values = {**vars(conversation.sampling), "system": conversation.system}
    values["model"] = "base" if conversation.base or not conversation.assistant.switches else "tuned"
    session.screen.note_table({key: "none" if value is None else str(value) for key, value in values.items()})


def _save(session: "Session", argument: str) -> None:
    overwrite = argument.split(maxsplit=1)[:1] == ["-f"]
    path = named_file(argument.removeprefix("-f").strip() if overwrite else argument)
    if not session.conversation.turns:
        raise YiTuneError("There is nothing to save yet.", "")
    save_messages(session.conversation.messages, path, overwrite=overwrite)
    session.screen.note(f"{len(session.conversation.messages)} messages are in {path}")


def _load(session: "Session", argument: str) -> None:
    path = named_file(argument)
    messages = load_messages(path)
    session.conversation.replace(messages)
    what = "The last one has no answer: /retry asks it." if session.conversation.unanswered else ""
    session.screen.note(f"Going on from the {len(messages)} messages in {path}. {what}".strip())


def _base(session: "Session", _: str) -> None:
    session.require_both()
    session.conversation.base = True
    session.screen.note("The base answers from here on.")


def _tuned(session: "Session", _: str) -> None:
    session.require_both()
    session.conversation.base = False
    session.screen.note("The tuned model answers from here on.")


def _compare(session: "Session", text: str) -> None:
    session.require_both()
    if not text:
        session.conversation.last_message()  # before a table is drawn
    session.compare(text)


def _stats(session: "Session", _: str) -> None:
    last = session.conversation.assistant.last
    if last is None:
        raise YiTuneError("There is no reply yet.", "")
    session.screen.note(
        f"{last.tokens} tokens at {last.tokens_per_second:.1f} tokens/s, the first after "
        f"{last.first_token_seconds:.2f} s; {last.prompt_tokens} tokens were read, {last.cached_tokens} of them cached"
    )


def _clear(session: "Session", _: str) -> None:
    session.conversation.clear()
    session.screen.note("Starting over.")


def _help(session: "Session", _: str) -> None:
    usages = {f"{name} {command.takes}".strip(): command.summary for name, command in COMMANDS.items()}
    session.screen.note_table({**usages, **KEYS})


def _exit(session: "Session", _: str) -> None:
    raise EOFError


COMMANDS = {
    "/retry": Command("", "answer the last message again", _retry),
    "/undo": Command("", "take the last message and its answer back", _undo),
    "/system": Command("TEXT", "set the system prompt and start over; without TEXT, none", _system),
    "/set": Command("KEY VALUE", f"change how replies are drawn: {', '.join(parameters())}", _set),
    "/params": Command("", "how replies are drawn, and who answers", _params),
    "/save": Command("FILE", "write the conversation as JSON lines; -f FILE overwrites", _save),
    "/load": Command("FILE", "go on from a conversation that was saved", _load),
    "/base": Command("", "talk to the base model, as it was before", _base),
    "/tuned": Command("", "talk to the tuned model", _tuned),
    "/compare": Command("[TEXT]", "both answers side by side, to TEXT or the last message", _compare),
    "/stats": Command("", "tokens and times of the last reply", _stats),
    "/clear": Command("", "start over; the system prompt stays", _clear),
    "/help": Command("", "this list", _help),
    "/exit": Command("", "leave", _exit),
}
KEYS = {
    "Ctrl-C": "stop an answer; what came of it is kept",
    "Ctrl-D": "leave",
    "Alt-Enter": "a new line within a message",
    "Tab": "complete a command, a key or a file's name",
    "Up, Down": "earlier messages",
}
