"""OpenAI's API in JSON: the bodies of requests, as far as they are taken, and of responses and errors."""

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.responses import Response

from yi_tune.data.identity import Message, check_messages
from yi_tune.errors import YiTuneError

# Fields that are not supported, with the values that ask for nothing; null is one for each.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "store": (False,),
}
# Fields that change nothing about a reply here.
_IGNORED = (
    *("user", "metadata", "service_tier", "parallel_tool_calls", "reasoning_effort", "verbosity"),
    *("safety_identifier", "prompt_cache_key"),
)


class ApiError(Exception):
    """A refusal: its HTTP status, and the fields of OpenAI's errors, so that its clients raise what they know."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self._status, self._headers = status, headers

    def response(self) -> Response:
        """The response. JSON in ASCII: UTF-8 has no place for half a surrogate pair in the name of a client's field."""
        return Response(json.dumps(self.body), self._status, self._headers, "application/json")


def _whole(text: str) -> str:
    """Raises ValueError for half a surrogate pair, which JSON can hold and no tokenizer takes."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class ChatRequest(BaseModel):
    """POST /v1/chat/completions. Types are not converted ("1" is no number); unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: Text
    messages: Annotated[list[Any], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool | None = None
    stream_options: dict[str, bool | None] | None = None
    # One string, or a list of them; in the document of the API it is a list.
    stop: Annotated[
        list[Annotated[Text, Field(min_length=1)]] | None,
        Field(max_length=4),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, body: Any) -> Any:
        """The body without the fields that have no effect. Raises ApiError for one that is asked in vain."""
        if not isinstance(body, dict):
            return body
        for name, neutral in _NEUTRAL.items():
            value = body.get(name)
            # In Python False == 0 and True == 1, in JSON not.
            if value is not None and not any(value == one and type(value) is type(one) for one in neutral):
                message = f"{name} is not supported by this server."
                raise ApiError(400, message, code="unsupported_parameter", param=name)
        if body.get("stream_options") is not None and not body.get("stream"):
            raise ApiError(400, "stream_options is only allowed when stream is true.", param="stream_options")
        return {name: value for name, value in body.items() if name not in _NEUTRAL and name not in _IGNORED}


def invalid(error: RequestValidationError) -> ApiError:
    """The first of pydantic's complaints, without the client's data."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.")
    if first["loc"] == ("body",):
        return ApiError(400, "The body has to be a JSON object, sent as Content-Type: application/json.")
    path = ".".join(str(step) for step in first["loc"][1:] if not isinstance(step, int))
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
    return ApiError(400, f"Invalid '{path}': {first['msg']}.", param=path, code="invalid_value")


def conversation(messages: list[Any]) -> list[Message]:
    """The messages as the chat template has them: a system prompt, then user and assistant in turn.

    System and developer messages at the beginning become one system prompt; messages in a row of one role become one.
    Raises ApiError for a conversation that the template has no place for.
    """
    turns: list[Any] = []
    for index, message in enumerate(messages):
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if role not in ("system", "developer", "user", "assistant") or {"tool_calls", "function_call"} & {
            name for name, value in fields.items() if value
        }:
            message = "the roles are system, developer, user and assistant; tools and functions are not supported."
            raise ApiError(400, f"messages[{index}]: {message}", param="messages")
        if isinstance(content, list):
            texts: list[Any] = [
                part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
            ]
            whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
            content = "".join(texts) if whole else content
        if content is None and role == "assistant":  # as one that called a tool has it
            content = ""
        if not isinstance(content, str):
            message = "text is taken, or parts of type 'text'. No image, audio, video or file is looked at."
            raise ApiError(400, f"messages[{index}].content: {message}", param="messages")
        role = "system" if role == "developer" else role
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append({"role": role, "content": content})
    try:
        checked = check_messages(turns)
        _whole("".join(turn["content"] for turn in checked))
    except YiTuneError as error:
        raise ApiError(400, f"{error.message} {error.hint}", param="messages") from None
    except UnicodeEncodeError:
        raise ApiError(400, "A message holds half a surrogate pair, which is no text.", param="messages") from None
    if checked[-1]["role"] != "user":
        raise ApiError(400, "The last message is the user's, for the assistant to answer.", param="messages")
    return checked


def completion(identifier: str, model: str, choice: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """The body of a response; a `choice` with a "delta" makes it, as no choice does, a piece of a streamed one."""
    kind = "chat.completion" if choice and "message" in choice else "chat.completion.chunk"
    choices = [{"index": 0, "logprobs": None, "finish_reason": None, **choice}] if choice else []
    return {"id": identifier, "object": kind, "created": int(time.time()), "model": model, "choices": choices, **more}


def usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    """The tokens that a request took."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
