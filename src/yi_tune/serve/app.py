"""The routes of the API: HTTP in, generations out. Nothing in `serve` imports torch."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from yi_tune.runs import Run
from yi_tune.sampling import Generation, Sampling
from yi_tune.serve.schema import ApiError, ChatRequest, completion, conversation, invalid
from yi_tune.serve.server import Guard, origin_pattern
from yi_tune.serve.worker import Worker

_FAILED = ApiError(500, "The reply could not be made. The server's log says why, unless it was told to end.")


def names_of(run: Run) -> tuple[str, str]:
    """What clients call the tuned model, which has the run's name, and the base, which has that of its folder."""
    base = Path(run.record["model_path"]).name
    return run.name, f"{base}-base" if base == run.name else base


async def _refuse(request: Request, error: Exception) -> Response:
    """Whatever was raised, in OpenAI's form."""
    if isinstance(error, RequestValidationError):
        error = invalid(error)
    elif isinstance(error.__cause__, UnicodeDecodeError):  # a Windows console's curl, say, which sends GBK
        said = "The body is not UTF-8. Save it as a file in UTF-8, and send that: curl --data-binary @FILE"
        error = ApiError(400, said)
    elif isinstance(error, HTTPException):
        url = f"Invalid URL ({request.method} {request.url.path})"
        error = ApiError(error.status_code, error.detail if error.status_code == 400 else url, headers=error.headers)
    elif not isinstance(error, ApiError):
        error = ApiError(500, "The server made a mistake. Its log says more.")
    return error.response()


def create_app(
    worker: Worker, names: tuple[str, str], key: str | None = None, origins: tuple[str, ...] = (), *, page: bool = False
) -> FastAPI:
    """The app; `names` are the tuned model's and the base's. Under /v1 a `key` is asked for if given; pages of
    `origins` may use it. With `page` one of its own is at "/", which the guard asks no key.
    """
    created = int(time.time())
    handlers: Any = dict.fromkeys((ApiError, RequestValidationError, HTTPException, Exception), _refuse)
    # The pages of documentation load scripts from elsewhere.
    app = FastAPI(title="yi-tune serve", docs_url=None, redoc_url=None, exception_handlers=handlers)
    app.add_middleware(Guard, key=key, origins=origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origin_regex=origin_pattern(origins).pattern,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            allow_private_network=True,  # a public page's browser asks before it asks this machine
        )

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        if name not in names:
            said = f"The model {name!r} does not exist. There are {names[0]!r} and {names[1]!r}."
            raise ApiError(404, said, "model_not_found", "model")
        return {"id": name, "object": "model", "created": created, "owned_by": "yi-tune"}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        running, waiting = worker.counts()
        return {"status": "ok", "running": running, "waiting": waiting}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in names]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        model(body.model)
        prompt = await asyncio.to_thread(worker.encode, conversation(body.messages))
        room = worker.context - len(prompt)
        if room < 1:
            said = f"This model's maximum context length is {worker.context} tokens. Your messages have {len(prompt)}, "
            said += "which leaves no room for a reply. Send less."
            raise ApiError(400, said, "context_length_exceeded", "messages")
        sampling = Sampling(
            temperature=body.temperature or 0.0,
            # At 0 the likeliest token is drawn, as it is at next to 0.
            top_p=1.0 if body.top_p is None else body.top_p or 1e-6,
            repetition_penalty=body.repetition_penalty or 1.0,
            max_new_tokens=min(body.max_completion_tokens or body.max_tokens or Sampling.max_new_tokens, room),
            seed=None if body.seed is None else body.seed % 2**63,
            top_k=body.top_k or 0,
        )
        pieces: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(text: str) -> None:
            if body.stream or not text:
                with suppress(RuntimeError):  # a second Ctrl-C has closed the loop
                    loop.call_soon_threadsafe(pieces.put_nowait, text)

        async def watch() -> None:
            """End the reply where the client goes away."""
            while not reply.over:
                await asyncio.sleep(0.25)
                if await request.is_disconnected():
                    reply.cancelled = True
                    emit("")

        stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
        reply = Generation(prompt, sampling, emit, base=body.model != names[0], stop=stop)
        if not worker.submit(reply):
            said = "The server has as many requests as it takes. Ask again later."
            raise ApiError(429, said, "rate_limit_exceeded", headers={"retry-after": "1"})
        request.state.watching = asyncio.create_task(watch())
        answer = partial(completion, f"chatcmpl-{uuid.uuid4().hex}", body.model)
        if body.stream:
            events = _events(reply, pieces, answer, usage=bool((body.stream_options or {}).get("include_usage")))
            # nginx would keep the pieces back until the reply is whole.
            return StreamingResponse(events, headers={"x-accel-buffering": "no"}, media_type="text/event-stream")
        await pieces.get()
        if reply.finish == "error":
            raise _FAILED
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        return JSONResponse(answer({"message": message, "finish_reason": reply.finish}, reply))

    if page:
        app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
    return app


async def _events(
    reply: Generation, pieces: "asyncio.Queue[str]", answer: Callable[..., dict[str, Any]], *, usage: bool
) -> AsyncIterator[str]:
    """The server-sent events of a streamed reply, with its `usage` if wanted."""

    def event(body: dict[str, Any]) -> str:
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

    yield event(answer({"delta": {"role": "assistant", "content": ""}}))
    while text := await pieces.get():
        yield event(answer({"delta": {"content": text}}))
    if reply.finish == "error":
        yield event(_FAILED.body)
        return
    yield event(answer({"delta": {}, "finish_reason": reply.finish}))
    if usage:
        yield event(answer(None, reply))
    yield "data: [DONE]\n\n"
