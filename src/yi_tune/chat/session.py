"""A chat at a terminal: the loop that reads what is typed, and the commands, which `/help` lists."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from yi_tune.chat.conversation import Conversation, Pieces
from yi_tune.chat.piped import load_messages, named_file, save_messages
from yi_tune.chat.rendering import Screen
from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.output import log_traceback
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
                self._show(lambda: self.conversation.say(typed), both=self.both)
            return
        name, argument = command[1], (command[2] or "").strip()
        if name not in COMMANDS:
            raise YiTuneError(f"{name} is no command; /help lists them.", did_you_mean(name, list(COMMANDS)))
        if name in ("/base", "/tuned", "/compare") and not self.conversation.assistant.switches:
            raise YiTuneError("Only one model is loaded.", "yi-tune chat --run NAME --compare loads a run's two.")
        COMMANDS[name][2](self, argument)

    def _show(self, answer: Callable[[], Pieces], *, both: bool) -> None:
        """Show an answer; whatever it dies of, the chat goes on."""
        own, other = ("base", "tuned") if self.conversation.base else ("tuned", "base")
        try:
            if both:
                self.screen.side_by_side({own: answer, other: self.conversation.other})
            else:
                self.screen.reply(answer())
        except KeyboardInterrupt:
            self.screen.note("[stopped]")
        except YiTuneError as error:
            self.screen.note(f"{error.message} {error.hint}", "red")
        except Exception as error:
            failed = f"The answer failed: {type(error).__name__}: {error}\nThe whole of it is in {log_traceback()}"
            self.screen.note(failed, "red")

    def _retry(self, _: str) -> None:
        conversation, sampling = self.conversation, self.conversation.sampling
        conversation.last_message()  # nothing is said of the answer where there is no question
        if not conversation.unanswered and (sampling.temperature == 0 or sampling.seed is not None):
            self.screen.note("Without chance the answer stays the same: /set temperature 0.7 and /set seed none.")
        self._show(conversation.retry, both=self.both)

    def _undo(self, _: str) -> None:
        self.screen.note(f"Taken back: {self.conversation.undo()}")

    def _system(self, text: str) -> None:
        self.conversation.system = text or None
        self.conversation.clear()
        self.screen.note("System prompt set; starting over." if text else "No system prompt; starting over.")

    def _set(self, argument: str) -> None:
        key, _, value = argument.replace("=", " ", 1).partition(" ")
        key, value = key.replace("-", "_"), value.strip()
        if key not in PARAMETERS:
            raise YiTuneError(f"{key or 'Nothing'} cannot be set.", did_you_mean(key, list(PARAMETERS)))
        example = "For example: /set temperature 0.7"
        try:
            number: Any = None if (key, value) == ("seed", "none") else PARAMETERS[key](value)
            self.conversation.sampling = replace(self.conversation.sampling, **{key: number})
        except ValueError:
            kind = "a whole number" if PARAMETERS[key] is int else "a number"
            raise YiTuneError(f"{key} takes {kind}, not {value or 'nothing'}.", example) from None
        except YiTuneError as error:
            # It speaks of options: --top-p is top_p here.
            message = re.sub("--([a-z-]+)", lambda option: option[1].replace("-", "_"), error.message)
            raise YiTuneError(message, example) from None
        self.screen.note(f"{key} is {'none' if number is None else number}.")

    def _params(self, _: str) -> None:
        conversation = self.conversation
        values = {**vars(conversation.sampling), "system": conversation.system}
        values["model"] = "base" if conversation.base or not conversation.assistant.switches else "tuned"
        self.screen.note_table({key: "none" if value is None else str(value) for key, value in values.items()})

    def _save(self, argument: str) -> None:
        overwrite = argument.split(maxsplit=1)[:1] == ["-f"]
        path = named_file(argument.removeprefix("-f").strip() if overwrite else argument)
        messages = self.conversation.messages
        if not self.conversation.turns:
            raise YiTuneError("There is nothing to save yet.")
        save_messages(messages, path, overwrite=overwrite)
        self.screen.note(f"{len(messages)} messages are in {path}")

    def _load(self, argument: str) -> None:
        path = named_file(argument)
        messages = load_messages(path)
        self.conversation.replace(messages)
        last = " The last one has no answer: /retry asks it." if self.conversation.unanswered else ""
        self.screen.note(f"Going on from the {len(messages)} messages in {path}.{last}")

    def _switch(self, *, base: bool) -> None:
        self.conversation.base = base
        self.screen.note(f"The {'base' if base else 'tuned model'} answers from here on.")

    def _compare(self, text: str) -> None:
        """The conversation goes on from the answer of the one that it is held with."""
        if not text:
            self.conversation.last_message()  # before a table is drawn
        self._show((lambda: self.conversation.say(text)) if text else self.conversation.retry, both=True)

    def _stats(self, _: str) -> None:
        last = self.conversation.assistant.last
        if last is None:
            raise YiTuneError("There is no reply yet.")
        self.screen.note(
            f"{last.tokens} tokens at {last.tokens_per_second:.1f} tokens/s, the first after "
            f"{last.first_token_seconds:.2f} s; {last.prompt_tokens} tokens were read, {last.cached_tokens} of them "
            "cached"
        )

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self.screen.note("Starting over.")

    def _help(self, _: str) -> None:
        usages = {f"{name} {takes}".strip(): summary for name, (takes, summary, _) in COMMANDS.items()}
        self.screen.note_table({**usages, "Keys": KEYS})

    def _exit(self, _: str) -> None:
        raise EOFError


# What a command takes, what it is for, and what it does.
COMMANDS: dict[str, tuple[str, str, Callable[[Session, str], None]]] = {
    "/retry": ("", "answer the last message again", Session._retry),
    "/undo": ("", "take the last message and its answer back", Session._undo),
    "/system": ("TEXT", "set the system prompt and start over; without TEXT, none", Session._system),
    "/set": ("KEY VALUE", f"change how replies are drawn: {', '.join(PARAMETERS)}", Session._set),
    "/params": ("", "how replies are drawn, and who answers", Session._params),
    "/save": ("FILE", "write the conversation as JSON lines; -f FILE overwrites", Session._save),
    "/load": ("FILE", "go on from a conversation that was saved", Session._load),
    "/base": ("", "talk to the base model, as it was before", lambda session, _: session._switch(base=True)),
    "/tuned": ("", "talk to the tuned model", lambda session, _: session._switch(base=False)),
    "/compare": ("[TEXT]", "both answers side by side, to TEXT or the last message", Session._compare),
    "/stats": ("", "tokens and times of the last reply", Session._stats),
    "/clear": ("", "start over; the system prompt stays", Session._clear),
    "/help": ("", "this list", Session._help),
    "/exit": ("", "leave", Session._exit),
}
KEYS = "Ctrl-C stops an answer, Ctrl-D leaves, Alt-Enter breaks the line, Tab completes, Up recalls"


def interactive(session: Session, ask: Callable[[str], str]) -> None:
    """Chat with a person until /exit or end of file; `ask` shows a prompt and reads a message, as `input` does."""
    screen = session.screen
    screen.note("Type a message, or /help.")
    while True:
        try:
            typed = ask("base> " if session.conversation.base else "> ").strip()
            # What a terminal sends that is not UTF-8 is no text for a tokenizer.
            session.obey(typed.encode(errors="replace").decode())
        except EOFError:
            return
        except KeyboardInterrupt:
            screen.note("Ctrl-D or /exit leaves.")
        except YiTuneError as error:
            screen.note(f"{error.message} {error.hint}".strip(), "red")
