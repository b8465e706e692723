"""Where the server listens, whom it lets in, how much it reads, and how it ends."""

import asyncio
import hmac
import ipaddress
import re
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from gettext import gettext as _

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yi_tune.errors import YiTuneError
from yi_tune.output import err
from yi_tune.serve.schema import ApiError

MAX_BODY = 1 << 20  # bytes; a context of 16,000 tokens is about 64 KB of English
# A body is there whole by then: less than there is after SIGTERM, so that whoever stops in the middle is told.
BODY_SECONDS = 20
GRACE_SECONDS = 30  # how long replies may go on after SIGTERM or Ctrl-C
_HEADERS = {
    # The page loads from here only, and never turns text into HTML or scripts.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # A browser is to ask whether a file of the page has changed, as it has in another version.
    "cache-control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine is reached by that name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def choose_key(host: str, given: str | None) -> str | None:
    """The API key to ask for: the one given, none where only this machine can ask, or else a new one, which is shown.

    Raises YiTuneError for a key that no client can send.
    """
    if given is None:
        if is_loopback(host):
            return None
        given = secrets.token_urlsafe(32)
        err.print(_("API key, shown this once: {given}").format(given=given))
    if not re.fullmatch("[!-~]([ -~]*[!-~])?", given):
        raise YiTuneError(
            "The API key is empty, or has characters that a header cannot carry.",
            "Take letters and digits, or leave it out: one is made for addresses that others can reach.",
        )
    return given


def listen(host: str, port: int) -> socket.socket:
    """The socket, listening. Raises YiTuneError when it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise YiTuneError(
            "{host}:{port} cannot be listened on: {reason}.",
            "Take another one: --port 0 finds a free one, --host 127.0.0.1 is this machine, 0.0.0.0 all its addresses.",
            host=host,
            port=port,
            reason=(error.strerror or "").partition(" (")[0],
        ) from None
    # Without it, on which asyncio does not see here, the kernel holds small writes back for up to 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url(listening: socket.socket) -> str:
    """The address that clients use, without the path."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def origin_pattern(origins: Sequence[str]) -> re.Pattern[str]:
    """What those origins match as a whole. `:*` at the end of one stands for any port."""
    return re.compile("|".join(re.escape(one).replace(r":\*", r"(:\d+)?") for one in origins) or "(?!)")


class Guard:
    """ASGI middleware that refuses requests before anything else looks at them.

    - Without a key, a Host header that is neither this machine's nor that of one of `origins`.
    - For the API, an Origin that is neither the server's own nor one of `origins`: browsers send the requests of any
      page. And a missing or wrong key. The page's own files are public: it is the page that asks for the key, and a
      browser sends the Origin with its scripts.
    - A body of more than MAX_BODY bytes, or one that is not there whole after BODY_SECONDS.
    """

    def __init__(self, app: ASGIApp, key: str | None, origins: Sequence[str]) -> None:
        self._app, self._key, self._allowed = app, key, origin_pattern(origins).fullmatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
            read = [{"type": "http.request", "body": await read_body(receive)}]
        except ApiError as error:
            await error.response()(scope, receive, secured)
            return

        async def again() -> Message:
            return read.pop() if read else await receive()

        await self._app(scope, again, secured)

    def _check(self, path: str, headers: Headers) -> None:
        """Raises ApiError for a request that is refused."""
        host, origin = headers.get("host", ""), headers.get("origin")
        # Whoever owns a name can point it at this machine, once a browser has their page; to the browser that page is
        # then of the server's own origin (DNS rebinding). The name of an allowed origin, which a proxy passes on, lets
        # in nobody new: browsers send it for that origin's own addresses, and its pages may use the API as it is. It
        # has to be the same to the port. A browser that comes past the proxy sends the port that this server has. And
        # app://obsidian.md does not let http://obsidian.md in.
        known = any(self._allowed(f"{scheme}://{host}") for scheme in ("http", "https"))
        if self._key is None and not known and not is_loopback(re.sub(r":\d+$", "", host).strip("[]")):
            said = f"This server does not go by the name {host!r}. For programs, start it with --api-key KEY. For a "
            said += f"page behind a proxy, start it with --allow-origin https://{host}"
            raise ApiError(403, said, "unknown_host")
        if not (path.startswith("/v1/") or path == "/openapi.json"):
            return
        if origin is not None and not self._allowed(origin) and origin.partition("://")[2] != host:
            said = f"Pages of {origin} may not use this server. Start it with --allow-origin {origin}. If they are its "
            said += "own, behind a proxy, and it has an --api-key, this does too: proxy_set_header Host $http_host"
            if origin == "null":
                said = "A page that was opened as a file may not use this server. Open it by HTTP, and start the "
                said += "server with --allow-origin ORIGIN"
            raise ApiError(403, said, "unknown_origin")
        if self._key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
                message = "The API key is missing or wrong: Authorization: Bearer KEY"
                raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})


async def read_body(receive: Receive) -> bytes:
    """The body of a request. Raises ApiError for one that is too large, or does not end."""
    body, more = b"", True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
                if len(body) > MAX_BODY:
                    raise ApiError(413, "The request is too large.")
    except TimeoutError:
        raise ApiError(408, "The request was not there whole in time.") from None
    return body


def serve(app: FastAPI, listening: socket.socket, close: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C. Replies then have GRACE_SECONDS to end; `close` ends what runs longer.

    It is to be called once, at the end of the process: signals have no effect afterwards.
    """

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # uvicorn would break the connections off. It does so where those who wait are not told in 5 seconds more.
            self.config.timeout_graceful_shutdown = GRACE_SECONDS + 5
            asyncio.get_running_loop().call_later(GRACE_SECONDS, close)
            await super().shutdown(sockets)

    # uvicorn sends itself the signal again at its end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    # No access log: nothing of what clients send is written down.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        # Proxies use an idle connection again for up to 60 seconds. Where it is closed before, a client gets a 502.
        timeout_keep_alive=75,
    )
    Server(config).run(sockets=[listening])
