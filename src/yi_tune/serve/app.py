"""The routes of the API."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response

from yi_tune.serve.errors import ApiError, error_response
from yi_tune.serve.generation import Engine, QueueFullError
from yi_tune.serve.guard import Guard
from yi_tune.serve.replies import FAILED, Replies, Shape, Stream, events, wait_for_all
from yi_tune.serve.schema import ChatRequest, CompletionRequest, conversation

# The longest reply where a client names no max_tokens, as in `yi-tune chat`; and OpenAI's of /v1/completions.
_CHAT_TOKENS, _COMPLETION_TOKENS = 1024, 16
# What pydantic calls the types of a field that may have several.
_BRANCHES = ("str", "int", "list")
_PAGE = Path(__file__).parent / "page"


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


def create_app(
    engine: Engine, names: Names, key: str | None = None, origins: tuple[str, ...] = (), *, page: bool = False
) -> FastAPI:
    """The app. Under /v1 a `key` is asked for if given; pages of `origins` may use it besides its own.

    With `page` its own is at "/": the guard asks no key there, and lets it load from here only.
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
        message = said.get(error.status_code, error.detail)
        return error_response(ApiError(error.status_code, message, headers=error.headers))

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
        return await answer(request, body, [prompt], asked, _CHAT_TOKENS, Shape("chat.completion", body.model))

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        check_model(body.model)
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        prompts = [await asyncio.to_thread(engine.encode_text, text) for text in texts]
        shape = Shape("text_completion", body.model)
        return await answer(request, body, prompts, body.max_tokens, _COMPLETION_TOKENS, shape)

    if page:
        for file in _PAGE.iterdir():
            _add_file(app, file)

    async def answer(
        request: Request,
        body: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
        asked: int | None,
        default: int,
        shape: Shape,
    ) -> Response:
        body.check()
        replies = Replies()
        for prompt in prompts:
            tokens = _room(engine.context, len(prompt), asked, default)
            for choice in range(body.n or 1):
                replies.add(
                    prompt,
                    tokens,
                    base=body.model != names.tuned,
                    stream=bool(body.stream),
                    temperature=body.temperature or 0.0,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    presence_penalty=body.presence_penalty or 0.0,
                    frequency_penalty=body.frequency_penalty or 0.0,
                    seed=None if body.seed is None else f"{body.seed} {choice}",
                    stop=body.stops(),
                )
        if len(replies.generations) > engine.capacity:
            raise ApiError(400, f"A request may ask for {engine.capacity} replies at the most.", param="n")
        try:
            engine.submit(replies.generations)
        except QueueFullError:
            message = "The server has as many requests as it takes. Ask again later."
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": "1"}) from None
        prompt_tokens = sum(len(prompt) for prompt in prompts)
        if body.stream:
            with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            stream = events(replies, shape, prompt_tokens, with_usage=with_usage)
            return Stream(replies, stream)
        if not await wait_for_all(request, replies):
            return Response(status_code=499)  # which nobody reads: the client has gone
        if any(finish == "error" for finish in replies.finish):
            return error_response(FAILED)
        return JSONResponse(shape.whole(replies, prompt_tokens))

    return app


def _add_file(app: FastAPI, file: Path) -> None:
    """Serve a file of the page's; a browser is to ask whether it has changed, as it has in another version."""

    @app.get("/" if file.name == "index.html" else f"/{file.name}", include_in_schema=False)
    async def send() -> Response:
        return FileResponse(file, headers={"cache-control": "no-cache"})


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
    if first["loc"] == ("body",):
        return ApiError(400, "The body has to be a JSON object, sent as Content-Type: application/json.")
    path = ""
    for step in first["loc"][1:]:
        named = step is first["loc"][-1] and first["type"] in ("missing", "extra_forbidden")
        if not named and (step in _BRANCHES or not (isinstance(step, int) or step.isidentifier())):
            continue  # one of several types that were tried, in pydantic's words
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.")
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
    return ApiError(400, f"Invalid '{path}': {first['msg']}.", param=path, code="invalid_value")
