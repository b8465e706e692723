"""How a hub misbehaves, and how it remembers what it was asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ALWAYS = 1_000_000


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose method and address match.

    `pattern` is matched against the path with its query, unquoted. The kinds that spoil a body strike where
    a file is sent: "cut" ends the connection at byte `at` of the file and "reset" breaks it off, "stall"
    waits there for `seconds`, "flip" sends that byte wrong, "short" serves a file that ends there, "whole"
    sends all of it though a part was asked for. "status"
    answers with `status` and `headers`; "redirect" sends the client to the address `to`.
    """

    pattern: str
    kind: Literal["status", "redirect", "cut", "reset", "stall", "flip", "short", "whole"]
    times: int = 1
    at: int = 0
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 3600
    to: str = ""
    method: str = "*"


@dataclass
class Request:
    """One request, as the server saw it."""

    method: str
    address: str
    host: str
    credentials: bool
    file: str = ""
    start: int = 0
    sent: int = 0
    status: int = 0
