"""Errors in the shape of OpenAI's API, so that its clients raise what they know."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse


class ApiError(Exception):
    """A refusal: its HTTP status, and OpenAI's fields."""

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
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON of an error."""
    kinds = {429: "rate_limit_error"}
    kind = "server_error" if error.status >= 500 else kinds.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: ApiError) -> JSONResponse:
    """The response of an error."""
    return _Ascii(error_body(error), error.status, error.headers)


class _Ascii(JSONResponse):
    """Starlette's is UTF-8, which half a surrogate pair in the name of a client's field cannot be written in."""

    def render(self, content: Any) -> bytes:
        import json

        return json.dumps(content).encode("ascii")
