"""The replies to one request on their way to the client, in the words of OpenAI's API."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from yi_tune.serve.errors import ApiError, error_body
from yi_tune.serve.generation import Generation, Piece

FAILED = ApiError(500, "The reply could not be made. The server's log says why, unless it was told to end.")


class Replies:
    """The replies to one request, as they come in."""

    def __init__(self) -> None:
        self.generations: list[Generation] = []
        self.texts: list[list[str]] = []
        self.finish: list[str | None] = []
        self.tokens: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def add(self, prompt: list[int], max_new_tokens: int, **options: Any) -> None:
        """Ask for one more."""
        index = len(self.generations)

        def emit(piece: Piece) -> None:
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))
            except RuntimeError:  # a second Ctrl-C has closed the loop
                pass

        self.generations.append(Generation(prompt, max_new_tokens, emit, **options))
        self.texts.append([])
        self.finish.append(None)
        self.tokens.append(0)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Each piece with the index of its reply, to the end of all or to a failure."""
        while None in self.finish:
            index, piece = await self._queue.get()
            self.texts[index].append(piece.text)
            self.finish[index] = piece.finish
            self.tokens[index] = piece.tokens
            yield index, piece
            if piece.finish == "error":
                return

    def cancel(self) -> None:
        """End those that are not at their end: nobody waits for them any more."""
        for generation in self.generations:
            generation.cancelled = True


class Stream(StreamingResponse):
    """Server-sent events; whatever ends the response, a client that went away too, ends the generations."""

    def __init__(self, replies: Replies, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._replies.cancel()


@dataclass(frozen=True)
class Shape:
    """How OpenAI writes one of the two kinds of completion."""

    kind: Literal["chat.completion", "text_completion"]
    model: str

    def _object(self, identifier: str, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": identifier, "object": kind, "created": int(time.time()), "model": self.model}
        return {**head, "choices": choices, **more}

    def identifier(self) -> str:
        return f"{'chatcmpl' if self.kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}"

    def whole(self, replies: Replies, prompt_tokens: int) -> dict[str, Any]:
        """The response when all has been said."""
        choices = []
        for index, (pieces, finish) in enumerate(zip(replies.texts, replies.finish, strict=True)):
            text = "".join(pieces)
            message = {"message": {"role": "assistant", "content": text, "refusal": None}}
            said = message if self.kind == "chat.completion" else {"text": text}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": finish})
        return self._object(self.identifier(), self.kind, choices, usage=_usage(replies, prompt_tokens))

    def chunk(self, identifier: str, choice: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        """A piece of a streamed response."""
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        return self._object(identifier, kind, [choice] if choice else [], **more)

    def choice(self, index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        said = {"delta": delta} if self.kind == "chat.completion" else {"text": delta.get("content", "")}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}


def _usage(replies: Replies, prompt_tokens: int) -> dict[str, int]:
    made = sum(replies.tokens)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}


async def events(replies: Replies, shape: Shape, prompt_tokens: int, *, with_usage: bool) -> AsyncIterator[str]:
    """The server-sent events of a streamed response."""
    identifier = shape.identifier()
    usage = {"usage": None} if with_usage else {}

    def event(choice: dict[str, Any] | None, **more: Any) -> str:
        return _event(shape.chunk(identifier, choice, **more))

    if shape.kind == "chat.completion":
        for index in range(len(replies.generations)):
            yield event(shape.choice(index, {"role": "assistant", "content": ""}), **usage)
    async for index, piece in replies.pieces():
        if piece.finish == "error":
            yield _event(error_body(FAILED))
            return
        if piece.text:
            yield event(shape.choice(index, {"content": piece.text}), **usage)
        if piece.finish:
            yield event(shape.choice(index, {}, piece.finish), **usage)
    if with_usage:
        yield event(None, usage=_usage(replies, prompt_tokens))
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def wait_for_all(request: Request, replies: Replies) -> bool:
    """Wait for the end of all replies; False when the client went away before."""

    async def all_pieces() -> None:
        async for _ in replies.pieces():
            pass

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(all_pieces()), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
        replies.cancel()
