"""The bodies of requests: what of OpenAI's API is taken, and what is refused."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from yi_tune.data.identity import Message
from yi_tune.serve.errors import ApiError

# Fields that this server gives no effect to, with the values that ask for none.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "store": (None, False),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}


def _whole(text: str) -> str:
    """Raises ValueError for half a surrogate pair, which JSON can hold and no tokenizer takes."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_whole)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Body(BaseModel):
    """Types are not converted ("1" is no number), and unknown fields are errors, as OpenAI has it."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Part(BaseModel):
    """A part of a message's content. Only text is taken."""

    model_config = ConfigDict(strict=True)

    type: str
    text: Text | None = None


class ChatMessage(_Body):
    """A message of a conversation, as OpenAI's clients send it, or send back what they received."""

    role: str
    content: Text | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: str | None = None
    annotations: Any = None
    audio: Any = None
    reasoning_content: str | None = None


class StreamOptions(_Body):
    """Options of a streamed reply."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Sampling(_Body):
    """What both kinds of completion take."""

    model: Text
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Text | list[Text] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    user: str | None = None
    logit_bias: Any = None

    def stops(self) -> tuple[str, ...]:
        """The stop strings. Raises ApiError when there are more than four, or an empty one."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 4 or "" in stops:
            raise ApiError(400, "stop takes up to 4 strings, none of them empty.", param="stop")
        return tuple(stops)

    def check(self) -> None:
        """Raises ApiError for what is asked in vain."""
        for name, none in _WITHOUT_EFFECT.items():
            value = getattr(self, name, None)
            # In Python False == 0 and True == 1, in JSON not.
            if not any(value == one and type(value) is type(one) for one in none):
                raise ApiError(
                    400, f"{name} is not supported by this server.", code="unsupported_parameter", param=name
                )
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is only allowed when stream is true.", param="stream_options")


class ChatRequest(_Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(_Sampling):
    """POST /v1/completions"""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=8)]
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None


def conversation(messages: list[ChatMessage]) -> list[Message]:
    """The messages as the chat template has them: a system prompt, then user and assistant in turn.

    System and developer messages at the beginning become one system prompt; messages in a row of one role become one.
    Raises ApiError for what the template has no place for.
    """
    turns: list[Message] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = "system" if message.role == "developer" else message.role
        if role not in ("system", "user", "assistant") or message.tool_calls or message.function_call:
            raise ApiError(
                400,
                f"{where}: the roles are system, developer, user and assistant; tools and functions are not supported.",
                param=f"{where}.role",
            )
        if role == "system" and turns and turns[-1]["role"] != "system":
            raise ApiError(400, f"{where}: a system message comes before all others.", param=f"{where}.role")
        if role == "assistant" and (not turns or turns[-1]["role"] == "system"):
            raise ApiError(400, f"{where}: the first turn is the user's.", param=f"{where}.role")
        text = _text(message, where)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text}"
        else:
            turns.append({"role": role, "content": text})
    if turns[-1]["role"] != "user":
        raise ApiError(400, "The last message is the user's, for the assistant to answer.", param="messages")
    return turns


def _text(message: ChatMessage, where: str) -> str:
    """The message's text; only an assistant's may be null, as one that called a tool has it."""
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise ApiError(400, f"{where}.content is null.", param=f"{where}.content")
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise ApiError(
                400,
                f"{where}.content: only parts of type 'text' are taken. No image, audio, video or file is looked at.",
                param=f"{where}.content",
            )
    return "".join(part.text or "" for part in message.content)
