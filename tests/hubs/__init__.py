"""Two hubs on loopback, which speak the real ones' HTTP interfaces to the real clients."""

from tests.hubs.huggingface import HuggingFace
from tests.hubs.modelscope import ModelScope
from tests.hubs.server import ALWAYS, LOGIN, Fault, Hub

HUBS: dict[str, type[Hub]] = {"huggingface": HuggingFace, "modelscope": ModelScope}

__all__ = ["ALWAYS", "HUBS", "LOGIN", "Fault", "Hub", "HuggingFace", "ModelScope"]
