"""The routes of the API: HTTP in, generations out. Nothing in `serve` imports torch."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from yi_tune.runs import Run
from yi_tune.sampling import Generation, Piece, Sampling
from yi_tune.serve.schema import ApiError, ChatRequest, completion, conversation, invalid, usage
from yi_tune.serve.server import Guard
from yi_tune.serve.worker import QueueFullError, Worker

# The longest reply where a client names no limit, as in `yi-tune chat`.
_TOKENS = 1024
_FAILED = ApiError(500, "The reply could not be made. The server's log says why, unless it was told to end.")
_PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Names:
    """What clients call the two models."""

    tuned: str
    base: str

    @classmethod
    def of(cls, run: Run) -> "Names":
        """The run's name, and that of its base's folder."""
        base = Path(run.record["model_path"]).name
        return cls(run.name, f"{base}-base" if base == run.name else base)


def create_app(
    worker: Worker, names: Names, key: str | None = None, origins: tuple[str, ...] = (), *, page: bool = False
) -> FastAPI:
    """The app. Under /v1 a `key` is asked for if given; pages of `origins` may use it besides its own.

    With `page` its own is at "/": the guard asks no key there, and lets it load from here only.
    """
    created = int(time.time())
    # The pages of documentation load scripts from elsewhere.
    app = FastAPI(title="yi-tune serve", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, origins=origins)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, error: RequestValidationError) -> Response:
        return invalid(error).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        said = {404: f"Invalid URL ({request.method} {request.url.path})", 413: "The request is too large."}
        message = said.get(error.status_code, error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def fault(_: Request, __: Exception) -> Response:
        return ApiError(500, "That is a fault of the server's. Its log says more.").response()

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
        sampling = Sampling(
            temperature=body.temperature or 0.0,
            # At 0 the likeliest token is drawn, as it is at next to 0.
            top_p=1.0 if body.top_p is None else body.top_p or 1e-6,
            max_new_tokens=_room(worker.context, len(prompt), body.max_completion_tokens or body.max_tokens),
            seed=None if body.seed is None else body.seed % 2**63,
        )
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(piece: Piece) -> None:
            with suppress(RuntimeError):  # a second Ctrl-C has closed the loop
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        base = body.model != names.tuned
        reply = Generation(prompt, sampling, emit, base=base, stream=bool(body.stream), stop=body.stop or ())
        try:
            worker.submit(reply)
        except QueueFullError:
            message = "The server has as many requests as it takes. Ask again later."
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": "1"}) from None
        identifier = f"chatcmpl-{uuid.uuid4().hex}"
        if body.stream:
            with_usage = bool((body.stream_options or {}).get("include_usage"))
            return _Stream(reply, _events(identifier, body.model, len(prompt), pieces, with_usage=with_usage))
        whole = await _whole(request, reply, pieces)
        if whole is None:
            return Response(status_code=499)  # which nobody reads: the client has gone
        if whole.finish == "error":
            raise _FAILED
        answer = {"role": "assistant", "content": whole.text, "refusal": None}
        choice = {"message": answer, "finish_reason": whole.finish}
        return JSONResponse(completion(identifier, body.model, choice, usage=usage(len(prompt), whole.tokens)))

    def add_file(file: Path) -> None:
        @app.get("/" if file.name == "index.html" else f"/{file.name}", include_in_schema=False)
        async def send() -> Response:
            # A browser is to ask whether it has changed, as it has in another version.
            return FileResponse(file, headers={"cache-control": "no-cache"})

    for file in _PAGE.iterdir() if page else ():
        add_file(file)
    return app


def _room(context: int, prompt: int, asked: int | None) -> int:
    """How many tokens a reply may have. Raises ApiError when the prompt and what is asked for exceed the context."""
    wanted = prompt + (asked or 1)
    if wanted > context:
        message = f"This model's maximum context length is {context} tokens. You asked for {wanted}: {prompt} "
        message += f"in the prompt, {asked or 1} in the completion."
        raise ApiError(400, message, code="context_length_exceeded", param="messages")
    return min(asked or _TOKENS, context - prompt)


class _Stream(StreamingResponse):
    """Server-sent events; whatever ends the response, a client that went away too, ends the reply."""

    def __init__(self, reply: Generation, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.cancelled = True


async def _events(
    identifier: str, model: str, prompt_tokens: int, pieces: "asyncio.Queue[Piece]", *, with_usage: bool
) -> AsyncIterator[str]:
    """The server-sent events of a streamed response."""

    def event(body: dict[str, Any]) -> str:
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    def chunk(delta: dict[str, str], finish: str | None = None) -> str:
        more = {"usage": None} if with_usage else {}
        return event(completion(identifier, model, {"delta": delta, "finish_reason": finish}, **more))

    yield chunk({"role": "assistant", "content": ""})
    finish = None
    while finish is None:
        text, tokens, finish = await pieces.get()
        if finish == "error":
            yield event(_FAILED.body)
            return
        if text:
            yield chunk({"content": text})
    yield chunk({}, finish)
    if with_usage:
        yield event(completion(identifier, model, None, usage=usage(prompt_tokens, tokens)))
    yield "data: [DONE]\n\n"


async def _whole(request: Request, reply: Generation, pieces: "asyncio.Queue[Piece]") -> Piece | None:
    """The one piece of a reply that is not streamed; None when the client went away before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(pieces.get()), asyncio.create_task(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        reply.cancelled = True
        for task in tasks:
            task.cancel()
