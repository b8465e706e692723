"""Who may ask, from where, and how much: looked at before anything else is."""

import asyncio
import hmac
import ipaddress
from urllib.parse import SplitResult, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yi_tune.serve.errors import ApiError, error_response

MAX_BODY = 1 << 20  # bytes; a context of 16,000 tokens is about 64 KB of English
BODY_SECONDS = 20  # less than there is after SIGTERM, so that whoever stops in the middle is told and not cut off
_SECURITY = (
    # What a page from here may do: load from here, talk to here, and never turn text into HTML or scripts.
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


def is_loopback(host: str) -> bool:
    """Whether only this machine is reached by that name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware that refuses what has no business here.

    - Without a key, a Host header that is not this machine's: a page elsewhere whose name was pointed here (DNS
      rebinding) is for the browser of the same origin.
    - An Origin that is neither the server's own nor one of `origins`: browsers send requests of any page, and only
      keep the answers from it.
    - Under /v1 and for /openapi.json, a missing or wrong key. A page, which asks for the key, needs none.
    - A body of more than MAX_BODY bytes, or one that is not there whole after BODY_SECONDS.
    """

    def __init__(self, app: ASGIApp, key: str | None, origins: list[str]) -> None:
        self._app = app
        self._key = key.encode() if key is not None else None
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read, whole = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def bounded() -> Message:
            nonlocal read, whole
            try:
                async with asyncio.timeout_at(None if whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408) from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413)
            return message

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_SECURITY]
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error_response(error)(scope, receive, secured)
        else:
            await self._app(scope, bounded, secured)

    def _check(self, path: str, headers: Headers) -> None:
        """Raises ApiError for a request that is refused."""
        host = headers.get("host", "")
        if self._key is None and not is_loopback(_split(f"//{host}").hostname or ""):
            raise ApiError(403, f"This server does not go by the name {host!r}.", code="unknown_host")
        origin = headers.get("origin")
        if origin is not None and not ({origin, "*"} & {*self._origins}) and _split(origin).netloc != host:
            raise ApiError(403, f"Pages of {origin} may not use this server: --allow-origin", code="unknown_origin")
        if self._key is not None and (path.startswith("/v1/") or path == "/openapi.json"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                raise ApiError(
                    401,
                    "The API key is missing or wrong: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        if (length := headers.get("content-length", "0")).isdecimal() and int(length) > MAX_BODY:
            raise ApiError(413, f"A request may have {MAX_BODY} bytes.")


def _split(url: str) -> SplitResult:
    """The parts of a URL; all empty where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
