"""Two hubs on loopback, which speak the real ones' HTTP interfaces to the real clients."""

from tests.hubs.down import refusing, silent
from tests.hubs.faults import ALWAYS, Fault
from tests.hubs.huggingface import HuggingFace
from tests.hubs.modelscope import ModelScope
from tests.hubs.server import LOGIN, Hub
from tests.hubs.uploads import Uploads

HUBS: dict[str, type[Hub]] = {"huggingface": HuggingFace, "modelscope": ModelScope}

__all__ = ["ALWAYS", "HUBS", "LOGIN", "Fault", "Hub", "HuggingFace", "ModelScope", "Uploads", "refusing", "silent"]
