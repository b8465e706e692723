"""Lines in a pipe: the messages of one chat, or a conversation each."""

import json
import re
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from gettext import gettext as _
from typing import TextIO

from yi_tune.chat.session import Session
from yi_tune.data.identity import SHAPE, check_messages
from yi_tune.errors import YiTuneError
from yi_tune.output import log_traceback


def piped(session: Session, lines: Iterable[str]) -> None:
    """Each line is a message of one chat, and none a command. Raises YiTuneError for one that is not UTF-8."""
    for text in map(str.strip, filter(str.strip, lines)):
        _check_utf8(text)
        session.say(text)


def _check_utf8(text: str) -> None:
    if re.search("[\udc80-\udcff]", text):  # bytes that are none, as "surrogateescape" reads them
        said = _("A line of the input is not UTF-8: {text}").format(text=_printable(text)[:40])
        raise YiTuneError(said, "Convert it, for example: iconv -f GB18030 -t UTF-8")


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def piped_json(session: Session, lines: Iterable[str], out: TextIO) -> None:
    """Each line is a conversation, plain text or a JSON list of messages; each gets one JSON object.

    It holds the `reply`, or those of `base` and `tuned`, or the `error` of a line that cannot be answered. Raises
    YiTuneError at the end if there was one.
    """
    failed = 0
    for line in filter(str.strip, lines):
        prompt: object = line.strip()
        with suppress(ValueError):
            if isinstance(parsed := json.loads(line), list):
                prompt = parsed
        try:
            _check_utf8(line)
            answer = _answer(session, prompt)
        except Exception as error:
            failed += 1
            if not isinstance(error, YiTuneError):
                log_traceback()
            answer = {"error": str(error)}
        print(_printable(json.dumps({"prompt": prompt, **answer}, ensure_ascii=False)), file=out, flush=True)
    if failed:
        raise YiTuneError(
            "{failed} of the lines could not be answered.", 'Their objects say why, under "error".', failed=failed
        )


def _answer(session: Session, prompt: object) -> dict[str, str]:
    """The replies to a conversation by the names of those who reply; the session's system prompt is for one without."""
    messages = check_messages(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}])
    if messages[-1]["role"] != "user":
        raise YiTuneError("The last message has to be the user's.", SHAPE)
    if messages[0]["role"] != "system":
        messages = [*session.system_message, *messages]
    replies, assistant = {}, session.assistant
    for name in ("base", "tuned") if session.both else ("reply",):
        with assistant.base() if name == "base" else nullcontext():
            replies[name] = "".join(assistant.stream(messages, session.sampling)).strip()
    return replies
