"""Where the server listens, who it lets in, and how it ends."""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI

from yi_tune.errors import YiTuneError
from yi_tune.serve.guard import is_loopback

# How long replies may go on after SIGTERM or Ctrl-C, and how long it may then take to tell those who wait.
GRACE_SECONDS = 30
_FAREWELL_SECONDS = 5


@dataclass(frozen=True)
class Key:
    """The API key that is asked for; None asks for none. One that was made up has to be shown."""

    value: str | None
    generated: bool = False


def choose_key(host: str, given: str | None) -> Key:
    """The key given, none where only this machine can ask, or else a new one.

    Raises YiTuneError for a key that no client can send.
    """
    if given is None:
        return Key(None) if is_loopback(host) else Key(secrets.token_urlsafe(32), generated=True)
    if not given or not given.isascii() or not given.isprintable() or given != given.strip():
        raise YiTuneError(
            "The API key is empty, or has characters that a header cannot carry.",
            "Take letters and digits, or leave it out: one is made for addresses that others can reach.",
        )
    return Key(given)


def listen(host: str, port: int) -> socket.socket:
    """The socket, listening. Raises YiTuneError when it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except socket.gaierror:
        raise YiTuneError(f"--host {host!r} is no address of this machine.", "For all of them: 0.0.0.0") from None
    except OSError as error:
        raise YiTuneError(
            f"{host}:{port} cannot be listened on: {os.strerror(error.errno or 0)}.",
            "Take another one: --port 0 finds a free one.",
        ) from None
    # Connections have it from here: asyncio sees to it only for sockets that it has made itself. Without it the kernel
    # holds a small write back until the last one is acknowledged, which takes a client 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url(listening: socket.socket) -> str:
    """The address that clients use, without the path."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Calls `close` when the time for what is running is over: uvicorn would break the connections off."""

    def __init__(self, config: uvicorn.Config, close: Callable[[], None]) -> None:
        super().__init__(config)
        self._close = close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = threading.Timer(GRACE_SECONDS, self._close)
        closing.start()
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()


def serve(app: FastAPI, listening: socket.socket, close: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; what is running then has GRACE_SECONDS to end, and is ended by `close`, which
    may be called in another thread, and more than once.
    """

    def ended(_: int, __: FrameType | None) -> None:
        """uvicorn sends itself the signal again at its end; that we have come to the end is all it is to mean."""

    before = {number: signal.signal(number, ended) for number in (signal.SIGINT, signal.SIGTERM)}
    # No access log: nothing of what clients send is written down.
    patience = GRACE_SECONDS + _FAREWELL_SECONDS
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=patience)
    try:
        _Server(config, close).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
