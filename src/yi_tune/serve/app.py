"""The routes of the API: HTTP in, generations out. Nothing in `serve` imports torch."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from yi_tune.runs import Run
from yi_tune.sampling import Generation, Piece, Sampling
from yi_tune.serve.schema import ApiError, ChatRequest, completion, conversation, invalid, usage
from yi_tune.serve.server import Guard
from yi_tune.serve.worker import Worker

# The longest reply where a client names no limit, as in `yi-tune chat`.
_TOKENS = 1024
_FAILED = ApiError(500, "The reply could not be made. The server's log says why, unless it was told to end.")
# How often it is looked whether a client that waits for the whole of a reply is still there.
_POLL_SECONDS = 0.25


class Names(NamedTuple):
    """What clients call the two models."""

    tuned: str
    base: str

    @classmethod
    def of(cls, run: Run) -> "Names":
        """The run's name, and that of its base's folder."""
        base = Path(run.record["model_path"]).name
        return cls(run.name, f"{base}-base" if base == run.name else base)


async def _refuse(request: Request, error: Exception) -> Response:
    """Whatever was raised, in OpenAI's form."""
    if isinstance(error, RequestValidationError):
        error = invalid(error)
    elif isinstance(error, HTTPException):
        said = {404: f"Invalid URL ({request.method} {request.url.path})", 413: "The request is too large."}
        error = ApiError(error.status_code, said.get(error.status_code, error.detail), headers=error.headers)
    elif not isinstance(error, ApiError):
        error = ApiError(500, "The server made a mistake. Its log says more.")
    return error.response()


def create_app(
    worker: Worker, names: Names, key: str | None = None, origins: tuple[str, ...] = (), *, page: bool = False
) -> FastAPI:
    """The app. Under /v1 a `key` is asked for if given; pages of `origins` may use it besides its own.

    With `page` its own is at "/": the guard asks no key there, and lets it load from here only.
    """
    created = int(time.time())
    handlers: Any = dict.fromkeys((ApiError, RequestValidationError, HTTPException, Exception), _refuse)
    # The pages of documentation load scripts from elsewhere.
    app = FastAPI(title="yi-tune serve", docs_url=None, redoc_url=None, exception_handlers=handlers)
    app.add_middleware(Guard, key=key, origins=origins)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",))

    def card(name: str) -> dict[str, Any]:
        if name not in (names.tuned, names.base):
            message = f"The model {name!r} does not exist. There are {names.tuned!r} and {names.base!r}."
            raise ApiError(404, message, code="model_not_found", param="model")
        return {"id": name, "object": "model", "created": created, "owned_by": "yi-tune"}

    @app.get("/health")
    async def health() -> JSONResponse:
        running, waiting = worker.counts()
        body = {"status": "ok" if worker.alive else "failed", "running": running, "waiting": waiting}
        return JSONResponse(body, 200 if worker.alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(names.tuned), card(names.base)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return card(name)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        card(body.model)
        prompt = await asyncio.to_thread(worker.encode, conversation(body.messages))
        asked = body.max_completion_tokens or body.max_tokens
        if (wanted := len(prompt) + (asked or 1)) > worker.context:
            message = f"This model's maximum context length is {worker.context} tokens. You asked for {wanted}: "
            message += f"{len(prompt)} in the prompt, {asked or 1} in the completion."
            raise ApiError(400, message, code="context_length_exceeded", param="messages")
        sampling = Sampling(
            temperature=body.temperature or 0.0,
            # At 0 the likeliest token is drawn, as it is at next to 0.
            top_p=1.0 if body.top_p is None else body.top_p or 1e-6,
            max_new_tokens=min(asked or _TOKENS, worker.context - len(prompt)),
            seed=None if body.seed is None else body.seed % 2**63,
        )
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(piece: Piece) -> None:
            with suppress(RuntimeError):  # a second Ctrl-C has closed the loop
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        base = body.model != names.tuned
        reply = Generation(prompt, sampling, emit, base=base, stream=bool(body.stream), stop=body.stop or ())
        if not worker.submit(reply):
            message = "The server has as many requests as it takes. Ask again later."
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": "1"})
        answer = partial(completion, f"chatcmpl-{uuid.uuid4().hex}", body.model)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.get("include_usage")
            return _Stream(reply, _events(answer, pieces, len(prompt) if with_usage else None))
        while True:
            try:
                text, tokens, finish = await asyncio.wait_for(pieces.get(), _POLL_SECONDS)
                break
            except TimeoutError:
                if await request.is_disconnected():
                    reply.cancelled = True
                    return Response(status_code=499)  # which nobody reads
        if finish == "error":
            raise _FAILED
        choice = {"message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": finish}
        return JSONResponse(answer(choice, usage=usage(len(prompt), tokens)))

    if page:
        app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
    return app


class _Stream(StreamingResponse):
    """Server-sent events; whatever ends the response, a client that went away too, ends the reply."""

    def __init__(self, reply: Generation, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.cancelled = True


async def _events(
    answer: Callable[..., dict[str, Any]], pieces: "asyncio.Queue[Piece]", prompt: int | None
) -> AsyncIterator[str]:
    """The server-sent events of a streamed reply; the last one tells the tokens of a `prompt` that is given."""

    def event(body: dict[str, Any]) -> str:
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    yield event(answer({"delta": {"role": "assistant", "content": ""}}))
    finish = None
    while finish is None:
        text, tokens, finish = await pieces.get()
        if finish == "error":
            yield event(_FAILED.body)
            return
        if text:
            yield event(answer({"delta": {"content": text}}))
    yield event(answer({"delta": {}, "finish_reason": finish}))
    if prompt is not None:
        yield event(answer(None, usage=usage(prompt, tokens)))
    yield "data: [DONE]\n\n"
