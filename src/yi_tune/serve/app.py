"""The routes of the API."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from yi_tune.serve.errors import ApiError, error_body, error_response
from yi_tune.serve.generation import Engine, Generation, Piece, QueueFullError
from yi_tune.serve.guard import Guard
from yi_tune.serve.schema import ChatRequest, CompletionRequest, conversation

# The longest reply where a client names no max_tokens, as in `yi-tune chat`; and OpenAI's of /v1/completions.
_CHAT_TOKENS, _COMPLETION_TOKENS = 1024, 16
_FAILED = ApiError(500, "The reply could not be made. The server's log says why.")


class ErrorFields(BaseModel):
    """What OpenAI's errors hold."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorFields


@dataclass(frozen=True)
class Names:
    """What clients call the two models."""

    tuned: str
    base: str


def create_app(engine: Engine, names: Names, key: str | None = None, origins: tuple[str, ...] = ()) -> FastAPI:
    """The app. Under /v1 a `key` is asked for if given; pages of `origins` may use it besides its own.

    A page of its own can be mounted at "/": the guard asks no key there, and lets it load from here only.
    """
    created = int(time.time())

    app = FastAPI(
        title="yi-tune serve",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.add_middleware(Guard, key=key, origins=list(origins))
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return error_response(_invalid(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        said = {404: f"Invalid URL ({request.method} {request.url.path})", 413: "The request is too large."}
        return error_response(ApiError(error.status_code, said.get(error.status_code, error.detail)))

    @app.exception_handler(Exception)
    async def fault(_: Request, __: Exception) -> Response:
        return error_response(ApiError(500, "That is a fault of the server's. Its log says more."))

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "yi-tune"}

    def check_model(name: str) -> None:
        if name not in (names.tuned, names.base):
            message = f"The model {name!r} does not exist. There are {names.tuned!r} and {names.base!r}."
            raise ApiError(404, message, code="model_not_found", param="model")

    @app.get("/health")
    async def health() -> JSONResponse:
        body = {"status": "ok" if engine.alive else "failed", "running": engine.running, "waiting": engine.waiting}
        return JSONResponse(body, 200 if engine.alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(names.tuned), card(names.base)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        check_model(name)
        return card(name)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        check_model(body.model)
        prompt = await asyncio.to_thread(engine.encode_chat, conversation(body.messages))
        asked = body.max_completion_tokens or body.max_tokens
        return await answer(request, body, [prompt], asked, _CHAT_TOKENS, _Shape("chat.completion", body.model))

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        check_model(body.model)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        prompts = [await asyncio.to_thread(engine.encode_text, text) for text in texts]
        shape = _Shape("text_completion", body.model)
        return await answer(request, body, prompts, body.max_tokens, _COMPLETION_TOKENS, shape)

    async def answer(
        request: Request,
        body: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
        asked: int | None,
        default: int,
        shape: "_Shape",
    ) -> Response:
        body.check()
        replies = _Replies()
        for prompt in prompts:
            tokens = _room(engine.context, len(prompt), asked, default)
            for choice in range(body.n or 1):
                replies.add(
                    prompt,
                    tokens,
                    base=body.model != names.tuned,
                    temperature=body.temperature or 0.0,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    presence_penalty=body.presence_penalty or 0.0,
                    frequency_penalty=body.frequency_penalty or 0.0,
                    seed=None if body.seed is None else f"{body.seed} {choice}",
                    stop=body.stops(),
                )
        try:
            engine.submit(replies.generations)
        except QueueFullError:
            message = "The server has as many requests as it takes. Ask again later."
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": "1"}) from None
        prompt_tokens = sum(len(prompt) for prompt in prompts)
        if body.stream:
            with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            events = _events(replies, shape, prompt_tokens, with_usage=with_usage)
            return _Stream(replies, events)
        if not await _whole(request, replies):
            return Response(status_code=499)  # which nobody reads: the client has gone
        if any(finish == "error" for finish in replies.finish):
            return error_response(_FAILED)
        return JSONResponse(shape.whole(replies, prompt_tokens))

    return app


class _Replies:
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


class _Stream(StreamingResponse):
    """Server-sent events; whatever ends the response, a client that went away too, ends the generations."""

    def __init__(self, replies: _Replies, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._replies.cancel()


@dataclass(frozen=True)
class _Shape:
    """How OpenAI writes one of the two kinds of completion."""

    kind: Literal["chat.completion", "text_completion"]
    model: str

    def _object(self, identifier: str, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": identifier, "object": kind, "created": int(time.time()), "model": self.model}
        return {**head, "choices": choices, **more}

    def identifier(self) -> str:
        return f"{'chatcmpl' if self.kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}"

    def whole(self, replies: _Replies, prompt_tokens: int) -> dict[str, Any]:
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


def _usage(replies: _Replies, prompt_tokens: int) -> dict[str, int]:
    made = sum(replies.tokens)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}


async def _events(replies: _Replies, shape: _Shape, prompt_tokens: int, *, with_usage: bool) -> AsyncIterator[str]:
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
            yield _event(error_body(_FAILED))
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


async def _whole(request: Request, replies: _Replies) -> bool:
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


def _room(context: int, prompt: int, asked: int | None, default: int) -> int:
    """How many tokens a reply may have. Raises ApiError when the prompt and what is asked for exceed the context."""
    if prompt == 0:
        raise ApiError(400, "The prompt is empty.", param="prompt")
    if prompt + (asked or 1) > context:
        raise ApiError(
            400,
            f"This model's maximum context length is {context} tokens. You asked for {prompt + (asked or 1)}: {prompt} "
            f"in the prompt, {asked or 1} in the completion.",
            code="context_length_exceeded",
            param="messages",
        )
    return min(asked or default, context - prompt)


def _invalid(error: RequestValidationError) -> ApiError:
    """The first of pydantic's complaints, without the client's data."""
    first = error.errors()[0]
    path = ""
    for step in first["loc"][1:]:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.")
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
    return ApiError(400, f"Invalid '{path}': {first['msg']}.", param=path, code="invalid_value")
