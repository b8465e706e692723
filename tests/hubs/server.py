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
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.hubs.faults import Fault, Request

CDN_HOST = "localhost"
CHUNK = 1 << 16
# Where a network that wants a login first sends everybody: a page, and no error.
LOGIN = "/login"
# What git-lfs keeps on a hub of models; the rest lies in git itself.
LARGE = (".safetensors", ".bin", ".pt", ".model")


class Hub(ThreadingHTTPServer):
    """Serves `files` (bytes, or a path) as one repository. `token`: what a client must show; `rate`: bytes a second."""

    daemon_threads = True
    request_queue_size = 64
    # Yi-1.5-6B-Chat on this hub, and the variables that send the hub's client here and give it a token.
    repository: str
    endpoint_variable: str
    token_variable: str

    def __init__(
        self, files: Mapping[str, bytes | Path], *, token: str | None = None, rate: float | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.token, self.rate = dict(files), token, rate
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        # What the hub says a file's size is, where that is not so.
        self.listed_sizes: dict[str, int] = {}
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

    def size(self, name: str) -> int:
        content = self.files[name]
        return content.stat().st_size if isinstance(content, Path) else len(content)

    def listed_size(self, name: str) -> int:
        return self.listed_sizes.get(name, self.size(name))

    def digest(self, name: str, algorithm: str = "sha256") -> str:
        """The digest of a file: its sha256, or its object id in git."""
        if (name, algorithm) not in self._digests:
            prefix = b"" if algorithm == "sha256" else f"blob {self.size(name)}\0".encode()
            digest = hashlib.new(algorithm, prefix)
            for chunk in self.chunks(name, 0, self.size(name)):
                digest.update(chunk)
            self._digests[name, algorithm] = digest.hexdigest()
        return self._digests[name, algorithm]

    def chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        content = self.files[name]
        if isinstance(content, bytes):
            yield from (content[at : min(at + CHUNK, stop)] for at in range(start, stop, CHUNK))
            return
        with content.open("rb") as file:
            file.seek(start)
            for at in range(start, stop, 1 << 20):
                yield file.read(min(1 << 20, stop - at))

    def strike(self, request: "Handler", *kinds: str) -> Fault | None:
        """The fault of these kinds that is due for a request, used up by one."""
        with self._lock:
            for fault in self.faults:
                if (
                    fault.times > 0
                    and fault.kind in kinds
                    and fnmatch.fnmatchcase(unquote(request.path), fault.pattern)
                    and fnmatch.fnmatchcase(request.command, fault.method)
                ):
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

    def put(self, request: "Handler") -> None:
        """Take a file that a client puts on the CDN."""
        request.error(405)

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
        self.entry = Request(self.command, self.path, host, credentials)
        self.server.log.append(self.entry)
        self.body = self._read_body()
        fault = None if self.route == LOGIN else self.server.strike(self, "status", "redirect")
        cdn = host.startswith(CDN_HOST)
        if self.route == LOGIN:
            self.reply(200, {"Content-Type": "text/html"}, b"<html>Welcome to this hotel's network</html>")
        elif fault is not None and fault.kind == "redirect":
            self.redirect(fault.to)
        elif fault is not None:
            self.error(fault.status, fault.headers)
        elif cdn and self.command == "PUT":
            self.server.put(self)
        elif cdn and self.route.startswith("/cdn/"):
            self.file(self.route.removeprefix("/cdn/"))
        elif not cdn and self.server.token is not None and authorization != f"Bearer {self.server.token}":
            self.error(401)
        else:
            self.server.answer(self)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def content(self) -> Any:
        """The JSON that the client sent."""
        return json.loads(self.body)

    def reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", headers.get("Content-Length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.reply(status, {"Content-Type": "application/json"} | dict(headers or {}), json.dumps(data).encode())

    def error(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """An error with a body that both hubs' clients can read."""
        self.json({"error": "no", "Code": status, "Message": "no", "Success": False}, status, headers)

    def redirect(self, to: str, headers: Mapping[str, str] | None = None) -> None:
        self.reply(302, {"Location": to} | dict(headers or {}))

    def redirect_to_cdn(self, name: str, headers: Mapping[str, str]) -> None:
        self.redirect(f"http://{CDN_HOST}:{self.server.server_port}/cdn/{quote(name)}?Signature=s", headers)

    def file(self, name: str, headers: Mapping[str, str] | None = None, *, ranges: bool = True) -> None:
        """Send a file, or the part that the client asked for, with the fault that is due."""
        if name not in self.server.files:
            self.error(404)
            return
        fault = (
            self.server.strike(self, "cut", "reset", "stall", "flip", "short", "whole")
            if self.command == "GET"
            else None
        )
        size = self.server.size(name)
        if fault is not None and fault.kind == "short":
            size = min(size, fault.at)
        wanted = self.headers["Range"] if ranges and (fault is None or fault.kind != "whole") else None
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        last = (wanted or "").partition("-")[2]
        stop = min(size, int(last) + 1) if last else size
        if wanted and start >= size:
            self.reply(416, {"Content-Range": f"bytes */{size}"})
            return
        own = {"Content-Length": str(stop - start), "Accept-Ranges": "bytes" if ranges else "none"}
        if wanted:
            own["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.entry.file, self.entry.start = name, start
        # Only the head: the body follows below, piece by piece.
        command, self.command = self.command, "HEAD"
        self.reply(206 if wanted else 200, own | dict(headers or {}))
        self.command = command
        if command == "GET":
            self._body(name, start, stop, fault)

    def _body(self, name: str, start: int, stop: int, fault: Fault | None) -> None:
        at = start
        for piece in self.server.chunks(name, start, stop):
            chunk = piece
            if fault is not None and fault.at < at + len(chunk):
                inside = max(0, fault.at - at)
                if fault.kind == "flip" and fault.at >= at:
                    chunk = chunk[:inside] + bytes([chunk[inside] ^ 0xFF]) + chunk[inside + 1 :]
                elif fault.kind == "stall":
                    self._send(chunk[:inside])
                    self.server.stopped.wait(fault.seconds)
                    chunk, at, fault = chunk[inside:], at + inside, None
                elif fault.kind in ("cut", "reset"):
                    self._send(chunk[:inside])
                    self._hang_up(reset=fault.kind == "reset")
                    return
            self._send(chunk)
            at += len(chunk)

    def _send(self, chunk: bytes) -> None:
        if self.server.stopped.is_set():
            raise ConnectionAbortedError
        self.server.pace(len(chunk))
        # Counted first: who has received it may look at the log at once.
        self.entry.sent += len(chunk)
        self.wfile.write(chunk)

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """The log is the server's own."""
