"""In what precision a model answers: unquantised where free memory holds that, whatever it was trained in."""

from yi_tune.config import Config
from yi_tune.hardware import Hardware
from yi_tune.models import Shape
from yi_tune.plan.memory import BASELINE

# `serve` may have as many conversations under way, each as long as Yi-1.5 takes one.
_CONVERSATIONS, _CONTEXT = 16, 4096


def answering(shape: Shape | None, hardware: Hardware, bits: int | None) -> Config:
    """The keys of a chat.yaml that are the machine's, for a model that is trained in `bits` (None: unquantised).

    Unquantised is how every other program has it that takes the adapter or an export. A CPU without bf16 answers so in
    float32, which needs no emulation. A model of unknown shape answers as it was trained.
    """
    dtype = "bfloat16" if hardware.bf16 else "float16" if hardware.gpu else "float32"
    if bits and not (shape and _unquantised(shape, hardware, 4 if dtype == "float32" else 2) <= hardware.free):
        return {"quantization_bit": bits} | ({} if dtype == "float32" else {"infer_dtype": dtype})
    return {"infer_dtype": dtype}


def _unquantised(shape: Shape, hardware: Hardware, weight_bytes: int) -> int:
    """Bytes that should be free: the weights, and a quarter more than the rest, keys and values of as many tokens as
    `serve` may have under way.
    """
    kept = _CONVERSATIONS * _CONTEXT * shape.layers * 2 * weight_bytes * shape.key
    return shape.parameters * weight_bytes + (BASELINE["cuda" if hardware.gpu else "cpu"] + kept) * 5 // 4
