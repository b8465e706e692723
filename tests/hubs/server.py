"""What both hubs have in common: a server on loopback that logs, throttles and misbehaves on demand.

Large files are handed over to a "CDN" as on the real hubs: the same server under another host name, to
which no token may go.
"""

import fnmatch
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mmap import mmap
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

ALWAYS = 1_000_000
CDN_HOST = "localhost"
CHUNK = 1 << 16
# Where a network that wants a login first sends everybody: a page, and no error.
LOGIN = "/login"
NONE: Mapping[str, str] = {}
# What git-lfs keeps on a hub of models; the rest lies in git itself.
LARGE = (".safetensors", ".bin", ".pt", ".model")


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose address matches.

    `pattern` is matched against the path with its query, unquoted. The kinds that spoil a body strike where
    a file is sent: "cut" ends the connection at byte `at` of the file and "reset" breaks it off, "stall" waits there
    for ever, "flip" sends that byte wrong, "short" serves a file that ends there, "whole" sends all of it though a
    part was asked for. "status" answers with `status` and `headers`; "redirect" sends the client to the address `to`.
    """

    pattern: str
    kind: Literal["status", "redirect", "cut", "reset", "stall", "flip", "short", "whole"]
    times: int = 1
    at: int = 0
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    to: str = ""


@dataclass
class Request:
    """One request, as the server saw it."""

    host: str
    credentials: bool
    file: str = ""
    start: int = 0
    sent: int = 0


class Hub(ThreadingHTTPServer):
    """Serves `files` as one repository. `token`: what a client must show; `rate`: bytes a second."""

    daemon_threads = True
    request_queue_size = 64
    # Yi-1.5-6B-Chat on this hub, and the variable that gives the hub's client a token.
    repository: str
    token_variable: str

    def __init__(
        self, files: Mapping[str, bytes | mmap], *, token: str | None = None, rate: float | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.token, self.rate = dict(files), token, rate
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.stopped = threading.Event()
        self._digests: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def sent(self) -> int:
        """Bytes of files sent so far."""
        return sum(request.sent for request in list(self.log))

    @property
    def leaks(self) -> list[Request]:
        """Requests that carried a token to a host that must not see it."""
        return [request for request in self.log if request.credentials and request.host.startswith(CDN_HOST)]

    def fetched(self, name: str) -> list[Request]:
        """The requests that sent any of a file."""
        return [request for request in self.log if request.file == name and request.sent]

    def large(self, name: str) -> bool:
        return name.endswith(LARGE)

    def fail(self, *faults: Fault) -> None:
        self.faults = [replace(fault) for fault in faults]

    def change(self, name: str, content: bytes) -> None:
        """Have another file of that name from now on."""
        self.files[name] = content
        self._digests.clear()

    def digest(self, name: str, algorithm: str = "sha256") -> str:
        """The digest of a file: its sha256, or its object id in git."""
        if (name, algorithm) not in self._digests:
            content = self.files[name]
            digest = hashlib.new(algorithm, b"" if algorithm == "sha256" else f"blob {len(content)}\0".encode())
            digest.update(content)
            self._digests[name, algorithm] = digest.hexdigest()
        return self._digests[name, algorithm]

    def strike(self, request: "Handler", *kinds: str) -> Fault | None:
        """The fault of these kinds that is due for a request, used up by one."""
        with self._lock:
            for fault in self.faults:
                matches = fnmatch.fnmatchcase(unquote(request.path), fault.pattern)
                if fault.times > 0 and fault.kind in kinds and matches:
                    fault.times -= 1
                    return fault
        return None

    def pace(self, count: int) -> None:
        """Wait as long as `count` bytes take at the server's rate, which all connections share."""
        if self.rate is None:
            return
        with self._lock:
            self._free_at = max(time.monotonic(), self._free_at) + count / self.rate
            wait = self._free_at - time.monotonic()
        self.stopped.wait(max(0.0, wait))

    def answer(self, request: "Handler") -> None:
        """Answer a request; each hub has its own routes."""
        raise NotImplementedError

    def handle_error(self, *_: object) -> None:
        """A client that was killed, or that hung up, is not worth a traceback."""

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def setup(self) -> None:
        super().setup()
        if self.server.rate is not None:
            # Little on its way, so that the log says what a killed client can have got.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), dict(parse_qsl(parts.query))
        host, authorization = self.headers["Host"], self.headers["Authorization"]
        credentials = bool(authorization or "m_session_id" in (self.headers["Cookie"] or ""))
        self.entry = Request(host, credentials)
        self.server.log.append(self.entry)
        fault = None if self.route == LOGIN else self.server.strike(self, "status", "redirect")
        cdn = host.startswith(CDN_HOST)
        if self.route == LOGIN:
            self.reply(200, {"Content-Type": "text/html"}, b"<html>Welcome to this hotel's network</html>")
        elif fault is not None and fault.kind == "redirect":
            self.redirect(fault.to)
        elif fault is not None:
            self.error(fault.status, fault.headers)
        elif cdn and self.route.startswith("/cdn/"):
            self.file(self.route.removeprefix("/cdn/"))
        elif not cdn and self.server.token is not None and authorization != f"Bearer {self.server.token}":
            self.error(401)
        else:
            self.server.answer(self)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def body(self) -> bytes:
        """What the client sent."""
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", headers.get("Content-Length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, data: Any, status: int = 200, headers: Mapping[str, str] = NONE) -> None:
        self.reply(status, {"Content-Type": "application/json", **headers}, json.dumps(data).encode())

    def error(self, status: int, headers: Mapping[str, str] = NONE) -> None:
        """An error with a body that both hubs' clients can read."""
        self.json({"error": "no", "Code": status, "Message": "no", "Success": False}, status, headers)

    def redirect(self, to: str, headers: Mapping[str, str] = NONE) -> None:
        self.reply(302, {"Location": to, **headers})

    def redirect_to_cdn(self, name: str, headers: Mapping[str, str]) -> None:
        self.redirect(f"http://{CDN_HOST}:{self.server.server_port}/cdn/{quote(name)}?Signature=s", headers)

    def file(self, name: str, headers: Mapping[str, str] = NONE, *, ranges: bool = True) -> None:
        """Send a file, or what follows the byte that the client asked for, with the fault that is due."""
        if name not in self.server.files:
            self.error(404)
            return
        get = self.command == "GET"
        fault = self.server.strike(self, "cut", "reset", "stall", "flip", "short", "whole") if get else None
        kind, at = (fault.kind, fault.at) if fault else ("", 0)
        content = self.server.files[name]
        stop = at if kind == "short" else len(content)
        wanted = self.headers["Range"] if ranges and kind != "whole" else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        own = {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{stop}"}
        self.entry.file, self.entry.start = name, start
        # Only the head: the body follows below, piece by piece.
        command, self.command = self.command, "HEAD"
        self.reply(206 if wanted else 200, own | dict(headers))
        self.command = command
        if not get:
            return
        ends = at if kind in ("cut", "reset", "stall") and at >= start else stop
        for begin in range(start, ends, CHUNK):
            piece = bytearray(content[begin : min(begin + CHUNK, ends)])
            if kind == "flip" and begin <= at < begin + len(piece):
                piece[at - begin] ^= 0xFF
            self._send(bytes(piece))
        if ends < stop:
            if kind == "stall":
                self.server.stopped.wait()
            self.hang_up(reset=kind == "reset")

    def _send(self, chunk: bytes) -> None:
        if self.server.stopped.is_set():
            raise ConnectionAbortedError
        self.server.pace(len(chunk))
        # Counted first: who has received it may look at the log at once.
        self.entry.sent += len(chunk)
        self.wfile.write(chunk)

    def hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """The log is the server's own."""
