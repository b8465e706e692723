"""Two hubs on loopback, which speak the real ones' HTTP interfaces to the real clients."""

from pathlib import Path

from tests.hubs.down import refusing, silent
from tests.hubs.faults import ALWAYS, Fault
from tests.hubs.huggingface import HuggingFace
from tests.hubs.modelscope import ModelScope
from tests.hubs.server import LOGIN, Hub
from tests.hubs.uploads import Uploads
from yi_tune import hubs

HUBS: dict[str, type[Hub]] = {"huggingface": HuggingFace, "modelscope": ModelScope}


def asking(address: str, name: str, revision: str | None = None) -> hubs.Hub:
    """yi-tune's side of the hub `name`, which asks the server at `address` in this process."""
    side = hubs.HuggingFace if name == "huggingface" else hubs.ModelScope

    class Asking(side):  # type: ignore[misc, valid-type]
        endpoint = address

        def cached(self) -> list[Path]:
            return []

    asking: hubs.Hub = Asking(HUBS[name].repository, revision)
    return asking


__all__ = [
    "ALWAYS",
    "HUBS",
    "LOGIN",
    "Fault",
    "Hub",
    "HuggingFace",
    "ModelScope",
    "Uploads",
    "asking",
    "refusing",
    "silent",
]
