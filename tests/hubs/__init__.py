"""Two hubs on loopback, which speak the real ones' HTTP interfaces to the real clients."""

from tests.hubs.huggingface import HuggingFace
from tests.hubs.modelscope import ModelScope
from tests.hubs.server import ALWAYS, Fault, Hub, refusing, silent

HUBS: dict[str, type[Hub]] = {"huggingface": HuggingFace, "modelscope": ModelScope}

__all__ = ["ALWAYS", "HUBS", "Fault", "Hub", "HuggingFace", "ModelScope", "refusing", "silent"]
