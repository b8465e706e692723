"""A chat at a terminal: the loop that reads what is typed, and the commands, which `/help` lists; and one in a pipe."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from yi_tune.chat.conversation import Conversation
from yi_tune.chat.rendering import Pieces, Screen
from yi_tune.data.identity import check_messages, read_jsonl, to_jsonl
from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.files import write_whole
from yi_tune.output import log_traceback, print_table
from yi_tune.sampling import Sampling

# What /set sets, and its type.
PARAMETERS: dict[str, type[int] | type[float]] = {
    field.name: float if isinstance(field.default, float) else int for field in fields(Sampling)
}


@dataclass
class Session:
    """What the commands work on. With `both`, base and tuned model answer every message side by side."""

    conversation: Conversation
    screen: Screen
    both: bool = False

    def obey(self, typed: str) -> None:
        """Carry out a command, or answer a message. Raises EOFError to leave, YiTuneError for what cannot be done."""
        # A path, say, is no command.
        command = re.match(r"(/[A-Za-z0-9_-]*)(?:\s+(.*))?\Z", typed, re.DOTALL)
        if command is None:
            if typed:
                self.say(typed)
            return
        name, argument = command[1], (command[2] or "").strip()
        if name not in COMMANDS:
            raise YiTuneError(f"{name} is no command; /help lists them.", did_you_mean(name, list(COMMANDS)))
        if name in ("/base", "/tuned", "/compare") and not self.conversation.assistant.switches:
            raise YiTuneError("Only one model is loaded.", "yi-tune chat --run NAME --compare loads a run's two.")
        if note := COMMANDS[name][2](self, argument):
            self.screen.note(note)

    def say(self, text: str) -> None:
        """Answer a message."""
        self._show(self.conversation.say(text), both=self.both)

    def _show(self, answer: Pieces, *, both: bool) -> None:
        own, other = ("base", "tuned") if self.conversation.base else ("tuned", "base")
        if both:
            self.screen.side_by_side({own: lambda: answer, other: self.conversation.other})
        else:
            self.screen.reply(answer)

    def _retry(self, _: str) -> None:
        self._show(self.conversation.retry(), both=self.both)

    def _system(self, text: str) -> str:
        self.conversation.start(text or None)
        return "System prompt set; starting over." if text else "No system prompt; starting over."

    def _set(self, argument: str) -> str:
        key, _, value = argument.replace("=", " ", 1).partition(" ")
        value = value.strip()
        if key not in PARAMETERS:
            raise YiTuneError(f"{key or 'Nothing'} cannot be set.", did_you_mean(key, list(PARAMETERS)))
        try:
            number: Any = None if (key, value) == ("seed", "none") else PARAMETERS[key](value)
        except ValueError:
            kind = "a whole number" if PARAMETERS[key] is int else "a number"
            raise YiTuneError(f"{key} takes {kind}, not {value or 'nothing'}.") from None
        self.conversation.sampling = replace(self.conversation.sampling, **{key: number})
        return f"{key} is {value}."

    def _params(self, _: str) -> None:
        conversation = self.conversation
        values = {**vars(conversation.sampling), "system": conversation.system}
        values["model"] = "base" if conversation.base or not conversation.assistant.switches else "tuned"
        rows = [(key, "none" if value is None else str(value)) for key, value in values.items()]
        print_table(self.screen.notes, rows)

    def _save(self, argument: str) -> str:
        overwrite, conversation = f"{argument} ".startswith("-f "), self.conversation
        path = _file(argument.removeprefix("-f") if overwrite else argument).resolve()
        if not conversation.turns:
            raise YiTuneError("There is nothing to save yet.")
        if path.exists() and not (overwrite and path.is_file()):
            raise YiTuneError(f"{path} exists.", f"/save -f {path} overwrites a file.")
        messages = [*conversation.system_message, *conversation.turns]
        write_whole(path, to_jsonl(messages), mode=0o600)
        return f"{len(messages)} messages are in {path}"

    def _load(self, argument: str) -> str:
        path = _file(argument)
        try:
            messages = check_messages([*read_jsonl(path)])
        except ValueError as error:
            raise YiTuneError(f"{path} is not JSON lines in UTF-8: {error}.", "It takes what /save writes.") from None
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        self.conversation.start(system, messages)
        last = " The last one has no answer: /retry asks it." if self.conversation.unanswered else ""
        return f"Going on after {len(messages)} messages from {path}.{last}"

    def _switch(self, *, base: bool) -> str:
        self.conversation.base = base
        return f"The {'base' if base else 'tuned model'} answers from here on."

    def _compare(self, text: str) -> None:
        """The conversation goes on from the answer of the one that it is held with."""
        self._show(self.conversation.say(text) if text else self.conversation.retry(), both=True)

    def _stats(self, _: str) -> str:
        last = self.conversation.assistant.last
        if last is None:
            raise YiTuneError("There is no reply yet.")
        return (
            f"{last.tokens} tokens at {last.tokens_per_second:.1f} tokens/s, the first after "
            f"{last.first_token_seconds:.2f} s; {last.prompt_tokens} tokens were read, {last.cached_tokens} of them "
            "cached"
        )

    def _clear(self, _: str) -> str:
        self.conversation.start(self.conversation.system)
        return "Starting over."

    def _help(self, _: str) -> None:
        usages = [(f"{name} {takes}".strip(), summary) for name, (takes, summary, _) in COMMANDS.items()]
        print_table(self.screen.notes, [*usages, ("Keys", KEYS)])

    def _exit(self, _: str) -> None:
        raise EOFError


def _file(typed: str) -> Path:
    """The path that was typed: with spaces, in quotes or not, `~` the home folder. Raises YiTuneError for none."""
    path = typed.strip(" \"'")
    if not path:
        raise YiTuneError("Which file?", "Name it, as in: chat.jsonl")
    return Path(path).expanduser()


# What a command takes, what it is for, and what it does; it returns what there is to say.
COMMANDS: dict[str, tuple[str, str, Callable[[Session, str], str | None]]] = {
    "/retry": ("", "answer the last message again; at temperature 0 the same", Session._retry),
    "/undo": ("", "take the last message and its answer back", lambda at, _: f"Taken back: {at.conversation.undo()}"),
    "/system": ("TEXT", "set the system prompt and start over; without TEXT, none", Session._system),
    "/set": ("KEY VALUE", f"change how replies are drawn: {', '.join(PARAMETERS)}", Session._set),
    "/params": ("", "how replies are drawn, and who answers", Session._params),
    "/save": ("FILE", "write the conversation as JSON lines; -f FILE overwrites", Session._save),
    "/load": ("FILE", "go on from a conversation that was saved", Session._load),
    "/base": ("", "talk to the base model, as it was before", lambda at, _: at._switch(base=True)),
    "/tuned": ("", "talk to the tuned model", lambda at, _: at._switch(base=False)),
    "/compare": ("[TEXT]", "both answers side by side, to TEXT or the last message", Session._compare),
    "/stats": ("", "tokens and times of the last reply", Session._stats),
    "/clear": ("", "start over; the system prompt stays", Session._clear),
    "/help": ("", "this list", Session._help),
    "/exit": ("", "leave", Session._exit),
}
KEYS = "Ctrl-C stops an answer, Ctrl-D leaves, Alt-Enter breaks the line, Tab completes, Up recalls"


def piped(session: Session, lines: Iterable[str]) -> None:
    """Each line is a message of one chat, and none a command."""
    for text in map(str.strip, filter(str.strip, lines)):
        session.say(text)


def interactive(session: Session, ask: Callable[[str], str]) -> None:
    """Chat with a person until /exit or end of file; `ask` shows a prompt and reads a message, as `input` does.

    Whatever a command or an answer dies of, the chat goes on.
    """
    note = session.screen.note
    note("Type a message, or /help.")
    while True:
        stopped = "Ctrl-D or /exit leaves."
        try:
            typed = ask("base> " if session.conversation.base else "> ").strip()
            stopped = "[stopped]"
            session.obey(typed)
        except EOFError:
            return
        except KeyboardInterrupt:
            note(stopped)
        except YiTuneError as error:
            note(f"{error.message} {error.hint}".strip(), "red")
        except OSError as error:
            note(str(error), "red")
        except Exception as error:
            note(f"That failed: {type(error).__name__}: {error}\nThe whole of it is in {log_traceback()}", "red")
