"""A chat: its messages, who answers them, and the commands, which `/help` lists."""

import re
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields, replace
from gettext import gettext as _
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yi_tune.chat.rendering import Pieces, Screen
from yi_tune.data.identity import Message, check_messages, read_jsonl, to_jsonl
from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.files import write_whole
from yi_tune.language import english
from yi_tune.output import print_table
from yi_tune.sampling import Sampling

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant

# What /set sets, and its type.
PARAMETERS: dict[str, type[int] | type[float]] = {
    known.name: float if isinstance(known.default, float) else int for known in fields(Sampling)
}


@dataclass
class Session:
    """The messages so far, and what the commands change; the last of `turns` is the user's while it has no answer.

    `base`: the base answers, not the tuned model; with `both` the two answer side by side. `other` has the user's
    messages with the other model's answers, as far as it was asked. `left_out` counts the oldest turns, a message and
    its reply as one, that are no longer sent: the model's context is full.
    """

    assistant: "Assistant"
    screen: Screen
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    base: bool = False
    both: bool = False
    turns: list[Message] = field(default_factory=list)
    other: list[Message] = field(default_factory=list)
    left_out: int = 0

    @property
    def system_message(self) -> list[Message]:
        """The system prompt as a message, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def start(self, system: str | None, turns: list[Message] | None = None) -> None:
        """Start over with this system prompt, after these turns."""
        self.system, self.turns, self.other, self.left_out = system, turns or [], [], 0

    def obey(self, typed: str) -> None:
        """Carry out a command, or answer a message. Raises EOFError to leave, YiTuneError for what cannot be done."""
        # A path, say, is no command.
        command = re.match(r"(/[A-Za-z0-9_-]*)(?:\s+(.*))?\Z", typed, re.DOTALL)
        if command is None:
            self.say(typed)
            return
        name, argument = command[1], (command[2] or "").strip()
        if name not in COMMANDS:
            raise YiTuneError(
                _("{name} is no command; /help lists them.").format(name=name), did_you_mean(name, list(COMMANDS))
            )
        if name in ("/base", "/tuned", "/compare") and not self.assistant.switches:
            raise YiTuneError("Only one model is loaded.", "yi-tune chat --run NAME --compare loads a run's two.")
        if note := COMMANDS[name][2](self, argument):
            self.screen.note(note)

    def say(self, text: str, *, both: bool = False) -> None:
        """Answer `text` in the place of a message that got no reply, or without text the last message again.

        An answer stopped halfway is kept as far as it came; of one that fails nothing is, and an old one stays.
        """
        if text:
            answered = len(self.turns) // 2 * 2
            self.turns = [*self.turns[:answered], {"role": "user", "content": text}]
        answer = self._keep(self._asked())
        if both or self.both:
            own, other = ("base", "tuned") if self.base else ("tuned", "base")
            self._catch_up(self._asked()[:-1:2])
            # Each goes on from its own answers.
            self.screen.side_by_side({own: lambda: answer, other: self._keep_other})
        else:
            self.screen.reply(answer)

    def _asked(self) -> list[Message]:
        """The turns up to the user's last message. Raises YiTuneError when there is none."""
        if not self.turns:
            raise YiTuneError("There is no message yet.", "Type one.")
        return self.turns if self.turns[-1]["role"] == "user" else self.turns[:-1]

    def _keep(self, asked: list[Message]) -> Pieces:
        before, text = self.turns, ""
        try:
            with closing(self._stream(asked, base=self.base)) as stream:
                for piece in stream:
                    text += piece
                    self.turns = [*asked, {"role": "assistant", "content": text}]
                    yield piece
        except Exception:
            self.turns = before
            raise

    def _catch_up(self, questions: list[Message]) -> None:
        """Have the other model asked these first messages of the user, and no more: it is asked those that it has not
        answered. After this model's answers, the base would say the new name.
        """
        same = takewhile(lambda pair: pair[0] == pair[1], zip(questions, self.other[::2], strict=False))
        known = len(list(same))
        self.other = self.other[: 2 * known]
        if questions[known:]:
            base, tuned = (
                _("The base is asked the earlier messages first."),
                _("The tuned model is asked the earlier messages first."),
            )
            self.screen.note(tuned if self.base else base)
        for question in questions[known:]:
            asked = [*self.other, question]
            reply = "".join(self._stream(asked, base=not self.base))
            self.other = [*asked, {"role": "assistant", "content": reply}]

    def _keep_other(self) -> Pieces:
        asked, text = [*self.other, self._asked()[-1]], ""
        for piece in self._stream(asked, base=not self.base):
            text += piece
            self.other = [*asked, {"role": "assistant", "content": text}]
            yield piece

    def _stream(self, asked: list[Message], *, base: bool) -> Pieces:
        """The reply to `asked`, a turn list that ends with the user's.

        Of a conversation that leaves a sixteenth of the context or less for it, a quarter of the messages goes at once:
        the cache serves the next turns.
        """
        assistant, system, before = self.assistant, self.system_message, self.left_out
        limit = assistant.context - min(self.sampling.max_new_tokens, assistant.context // 16)
        sent = [*system, *asked[2 * before :]]
        while len(sent) > len(system) + 1 and len(assistant.encode(sent)) > limit:
            self.left_out += 1 + len(sent) // 8
            sent = [*system, *asked[2 * self.left_out :]]
        if self.left_out and not before:
            self.screen.note(_("The model's context is full: the oldest turns of the conversation are left out now."))
        with assistant.base() if base else nullcontext():
            yield from assistant.stream(sent, self.sampling)

    def _undo(self, _text: str) -> str:
        *self.turns, last = self._asked()
        self.left_out = 0  # there is room again
        return _("Taken back: {text}").format(text=last["content"])

    def _system(self, text: str) -> str:
        self.start(text or None)
        return _("System prompt set; starting over.") if text else _("No system prompt; starting over.")

    def _set(self, argument: str) -> str:
        key, _space, value = argument.replace("=", " ", 1).partition(" ")
        value = value.strip()
        if key not in PARAMETERS:
            raise YiTuneError(
                _("{key} cannot be set.").format(key=key or _("Nothing")), did_you_mean(key, list(PARAMETERS))
            )
        try:
            number: Any = None if (key, value) == ("seed", "none") else PARAMETERS[key](value)
        except ValueError:
            given = value or _("nothing")
            if PARAMETERS[key] is int:
                raise YiTuneError("{key} takes a whole number, not {given}.", key=key, given=given) from None
            raise YiTuneError("{key} takes a number, not {given}.", key=key, given=given) from None
        self.sampling = replace(self.sampling, **{key: number})
        return _("{key} is {value}.").format(key=key, value=value)

    def _params(self, _text: str) -> None:
        values = {**vars(self.sampling), "system": self.system}
        values["model"] = "base" if self.base or not self.assistant.switches else "tuned"
        rows = [(key, "none" if value is None else str(value)) for key, value in values.items()]
        print_table(self.screen.notes, rows)

    def _save(self, argument: str) -> str:
        overwrite = f"{argument} ".startswith("-f ")
        path = _file(argument.removeprefix("-f") if overwrite else argument).resolve()
        if not self.turns:
            raise YiTuneError("There is nothing to save yet.")
        if path.exists() and not (overwrite and path.is_file()):
            raise YiTuneError("{path} exists.", "/save -f {path} overwrites a file.", path=path)
        messages = [*self.system_message, *self.turns]
        write_whole(path, to_jsonl(messages), mode=0o600)
        return _("{count} messages are in {path}").format(count=len(messages), path=path)

    def _load(self, argument: str) -> str:
        path = _file(argument)
        try:
            messages = check_messages([*read_jsonl(path)])
        except ValueError as error:
            raise YiTuneError(
                "{path} is not JSON lines in UTF-8: {error}.", "It takes what /save writes.", path=path, error=error
            ) from None
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        self.start(system, messages)
        return _("Going on after {count} messages from {path}.").format(count=len(messages), path=path)

    def _switch(self, *, base: bool) -> str:
        if base != self.base:
            answered = len(self.turns) // 2 * 2
            self._catch_up(self.turns[:answered:2])
            self.turns, self.other = [*self.other, *self.turns[answered:]], self.turns[:answered]
            self.base = base
        return _("The base answers from here on.") if base else _("The tuned model answers from here on.")

    def _stats(self, _text: str) -> str:
        last = self.assistant.last
        if last is None:
            raise YiTuneError("There is no reply yet.")
        speed, first = last.tokens_per_second, last.first_token_seconds
        return _(
            "{tokens} tokens at {speed:.1f} tokens/s, the first after {first:.2f} s; {prompt_tokens} "
            "tokens were read, {cached_tokens} of them cached"
        ).format(
            tokens=last.tokens,
            speed=speed,
            first=first,
            prompt_tokens=last.prompt_tokens,
            cached_tokens=last.cached_tokens,
        )

    def _clear(self, _text: str) -> str:
        self.start(self.system)
        return _("Starting over.")

    def _help(self, _text: str) -> None:
        usages = [(f"{name} {takes}".strip(), summary(name)) for name, (takes, *_rest) in COMMANDS.items()]
        print_table(self.screen.notes, [*usages, (_("Keys"), _(KEYS))])

    def _exit(self, _text: str) -> None:
        raise EOFError


def _file(typed: str) -> Path:
    """The path that was typed: with spaces, in quotes or not, `~` the home folder. Raises YiTuneError for none."""
    path = typed.strip(" \"'")
    if not path:
        raise YiTuneError("Which file?", "Name it, as in: chat.jsonl")
    return Path(path).expanduser()


# What a command takes, what it is for, and what it does; it returns what there is to say.
COMMANDS: dict[str, tuple[str, str, Callable[[Session, str], str | None]]] = {
    "/retry": ("", english("answer the last message again; at temperature 0 the same"), lambda at, _: at.say("")),
    "/undo": ("", english("take the last message and its answer back"), Session._undo),
    "/system": ("TEXT", english("set the system prompt and start over; without TEXT, none"), Session._system),
    "/set": ("KEY VALUE", english("change how replies are drawn: {parameters}"), Session._set),
    "/params": ("", english("how replies are drawn, and who answers"), Session._params),
    "/save": ("FILE", english("write the conversation as JSON lines; -f FILE overwrites"), Session._save),
    "/load": ("FILE", english("go on from a conversation that was saved"), Session._load),
    "/base": ("", english("talk to the base model, as it was before"), lambda at, _: at._switch(base=True)),
    "/tuned": ("", english("talk to the tuned model"), lambda at, _: at._switch(base=False)),
    "/compare": (
        "[TEXT]",
        english("both answers, to TEXT or the last message"),
        lambda at, text: at.say(text, both=True),
    ),
    "/stats": ("", english("tokens and times of the last reply"), Session._stats),
    "/clear": ("", english("start over; the system prompt stays"), Session._clear),
    "/help": ("", english("this list"), Session._help),
    "/exit": ("", english("leave"), Session._exit),
}


def summary(command: str) -> str:
    """What a command is for."""
    return _(COMMANDS[command][1]).format(parameters=", ".join(PARAMETERS))


KEYS = english("Ctrl-C stops an answer, Ctrl-D leaves, Alt-Enter breaks the line, Tab completes, Up recalls")
