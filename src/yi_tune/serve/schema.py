"""OpenAI's API in JSON: the bodies of requests, as far as they are taken, and of responses and errors."""

import json
import time
from itertools import groupby
from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, model_validator
from starlette.responses import Response

from yi_tune.data.identity import Message, check_messages
from yi_tune.errors import YiTuneError
from yi_tune.sampling import Generation

# Fields that would change the reply: refused but for null, zero, false, an empty value, and those named here. All other
# unknown fields are ignored: the model does not think, and its template has no variables.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs"), ()),
    **dict.fromkeys(("tools", "functions", "audio", "prediction", "web_search_options", "min_p", "echo"), ()),
    # Of vLLM and llama.cpp.
    **dict.fromkeys(("min_tokens", "ignore_eos", "stop_token_ids", "bad_words", "grammar", "json_schema"), ()),
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"), ()),
    **dict.fromkeys(("n", "best_of", "typical_p"), (1,)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
# And of a message.
_UNSUPPORTED_SAID = ("tool_calls", "function_call", "audio", "refusal")


class ApiError(Exception):
    """A refusal: its HTTP status and OpenAI's body of it, so that its clients raise what they know."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, headers: Any = None
    ) -> None:
        super().__init__(message)
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self._status, self._headers = status, headers

    def response(self) -> Response:
        """The response. JSON in ASCII: UTF-8 has no place for half a surrogate pair in the name of a client's field."""
        return Response(json.dumps(self.body), self._status, self._headers, "application/json")


def _joined(content: Any) -> Any:
    """The text of a message that is given in parts, or null, as the assistant's is where it called a tool."""
    if not isinstance(content, list):
        return "" if content is None else content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        raise ValueError("parts are of type 'text'. No image, audio, video or file is looked at.")
    return "".join(map(str, texts))


# pydantic looks for half a surrogate pair, which no tokenizer takes, only where there is a length to check.
Text = Annotated[str, Field(max_length=1 << 20)]
Stop = Annotated[Text, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class ChatMessage(BaseModel, strict=True):
    """A message: who says what. What else it has is ignored, but for what was said in another way than text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_joined)]

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, message: Any) -> Any:
        for name in _UNSUPPORTED_SAID if isinstance(message, dict) else ():
            if message.get(name):
                raise ValueError(f"{name} is not supported by this server.")
        return message


class ChatRequest(BaseModel, strict=True):
    """POST /v1/chat/completions. Types are not converted: "1" is no number."""

    model: Text
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stream: bool | None = None
    stream_options: dict[str, bool | None] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        """Raises ApiError for a field that is asked in vain."""
        for name, neutral in _UNSUPPORTED.items() if isinstance(body, dict) else ():
            if (value := body.get(name)) and value not in neutral:
                raise ApiError(400, f"{name} is not supported by this server.", "unsupported_parameter", name)
        return body


def invalid(error: RequestValidationError) -> ApiError:
    """The first of pydantic's complaints, without the client's data."""
    first = error.errors()[0]
    if first["type"] == "json_invalid" or first["loc"] == ("body",):
        return ApiError(400, "The body has to be a JSON object, sent as Content-Type: application/json.")
    path = ".".join(map(str, first["loc"][1:]))
    message = f"Invalid '{path}': {first['msg'].removeprefix('Value error, ')}"
    return ApiError(400, message, "invalid_value", str(first["loc"][1]))


def conversation(messages: list[ChatMessage]) -> list[Message]:
    """The messages as the chat template has them: a system prompt, then user and assistant in turn.

    System and developer messages, wherever they are, become one system prompt; the others in a row of one role become
    one. Where the last is the assistant's, the reply continues it. Raises ApiError for a conversation that the template
    has no place for.
    """
    ordered = sorted(messages, key=lambda message: message.role not in ("system", "developer"))
    turns: list[Any] = [
        {"role": role, "content": "\n\n".join(message.content for message in several if message.content)}
        for role, several in groupby(ordered, lambda message: message.role.replace("developer", "system"))
    ]
    try:
        return check_messages(turns)
    except YiTuneError as error:
        raise ApiError(400, f"{error.message} {error.hint}", param="messages") from None


def completion(
    identifier: str, model: str, choice: dict[str, Any] | None, counted: Generation | None = None
) -> dict[str, Any]:
    """The body of a response, or of a piece of a streamed one, which has no "message"; and the tokens of `counted`."""
    kind = "chat.completion" if choice and "message" in choice else "chat.completion.chunk"
    choices = [{"index": 0, "logprobs": None, "finish_reason": None, **choice}] if choice else []
    body = {"id": identifier, "object": kind, "created": int(time.time()), "model": model, "choices": choices}
    if counted is None:
        return body
    asked, made = len(counted.prompt), len(counted.tokens)
    return body | {"usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}}
