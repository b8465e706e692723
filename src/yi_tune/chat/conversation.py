"""A conversation with the model: what was said, who answers, and how replies are drawn; and those in JSON lines."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from yi_tune.chat.rendering import Pieces
from yi_tune.data.identity import SHAPE, Message, check_messages
from yi_tune.errors import YiTuneError
from yi_tune.output import log_traceback
from yi_tune.sampling import Sampling

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant


@dataclass
class Conversation:
    """The messages so far; the last one of `turns` is the user's while it has no answer.

    `base`: the base answers, not the tuned model. `note` is told once when the model's context is full and the oldest
    turns are no longer sent; `left_out` counts them, a message and its reply as one.
    """

    assistant: "Assistant"
    sampling: Sampling
    system: str | None = None
    base: bool = False
    note: Callable[[str], None] = lambda _: None
    turns: list[Message] = field(default_factory=list)
    left_out: int = 0

    @property
    def system_message(self) -> list[Message]:
        """The system prompt as a message, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system else []

    @property
    def unanswered(self) -> bool:
        """Whether the last message got no reply."""
        return bool(self.turns) and self.turns[-1]["role"] == "user"

    def start(self, system: str | None, turns: list[Message] | None = None) -> None:
        """Start over with this system prompt, after these turns."""
        self.system, self.turns, self.left_out = system, turns or [], 0

    def say(self, text: str) -> Pieces:
        """Answer `text`, piece by piece, in the place of a message that got no reply.

        An answer stopped halfway is kept as far as it came; of one that fails nothing is.
        """
        self.turns = [*self.turns[: -1 if self.unanswered else None], {"role": "user", "content": text}]
        return self.retry()

    def retry(self) -> Pieces:
        """Answer the last message again; the new answer takes the old one's place.

        Raises YiTuneError when there is no message.
        """
        return self._keep(self.asked())

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

    def undo(self) -> str:
        """Take the last message and its answer back; returns the message. Raises YiTuneError when there is none."""
        *self.turns, last = self.asked()
        self.left_out = 0  # there is room again
        return last["content"]

    def other(self) -> Pieces:
        """What the one that does not answer here, base or tuned, says to the last message; it is not kept."""
        return self._stream(self.asked(), base=not self.base)

    def asked(self) -> list[Message]:
        """The turns up to the user's last message. Raises YiTuneError when there is none."""
        if not self.turns:
            raise YiTuneError("There is no message yet.", "Type one.")
        return self.turns if self.unanswered else self.turns[:-1]

    def _stream(self, asked: list[Message], *, base: bool) -> Pieces:
        """The reply to `asked`, a turn list that ends with the user's."""
        system = self.system_message
        sent = self.assistant.fit([*system, *asked[2 * self.left_out :]], self.sampling.max_new_tokens)
        left_out = (len(system) + len(asked) - len(sent)) // 2
        if left_out and not self.left_out:
            self.note("The conversation is longer than the model's context: its oldest turns are left out now.")
        self.left_out = left_out
        with self.assistant.base() if base else nullcontext():
            yield from self.assistant.stream(sent, self.sampling)


def piped_json(settings: Conversation, lines: Iterable[str], out: TextIO, *, both: bool = False) -> None:
    """Each line is a conversation, plain text or a JSON list of messages; each gets one JSON object.

    It holds the `reply`, or of `both` that of `base` and `tuned`, or the `error` of a line that cannot be answered.
    Raises YiTuneError at the end if there was one.
    """
    failed = 0
    for line in filter(str.strip, lines):
        prompt: object = line.strip()
        with suppress(ValueError):
            if isinstance(parsed := json.loads(line), list):
                prompt = parsed
        try:
            answer = _answer(settings, prompt, ("base", "tuned") if both else ("reply",))
        except Exception as error:
            failed += 1
            if not isinstance(error, YiTuneError):
                log_traceback()
            answer = {"error": str(error)}
        print(json.dumps({"prompt": prompt, **answer}, ensure_ascii=False), file=out, flush=True)
    if failed:
        raise YiTuneError(f"{failed} of the lines could not be answered.", 'Their objects say why, under "error".')


def _answer(settings: Conversation, prompt: object, names: Iterable[str]) -> dict[str, str]:
    """The replies to a prompt that has no system prompt of its own, or has one, by the names of those who reply."""
    messages = check_messages(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}])
    if messages[-1]["role"] != "user":
        raise YiTuneError("The last message has to be the user's.", SHAPE)
    if messages[0]["role"] != "system":
        messages = [*settings.system_message, *messages]
    replies, assistant = {}, settings.assistant
    for name in names:
        with assistant.base() if name == "base" else nullcontext():
            replies[name] = "".join(assistant.stream(messages, settings.sampling)).strip()
    return replies
