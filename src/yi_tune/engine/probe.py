"""What torch, bitsandbytes and LLaMA-Factory say of this machine, as JSON, in a process of its own.

python -m yi_tune.engine.probe

An extension that does not fit the others may end a process, and not only raise.
"""

import importlib
import json
import sys
from typing import Any

from yi_tune.hardware import detect


def probe() -> dict[str, Any]:
    """Versions, the hardware that a run would use, and under `broken` what does not load or work, with why."""
    found: dict[str, Any] = {"torch": None, "cuda": None, "hardware": None, "broken": {}}
    for module in ("torch", "torchvision", "torchaudio", "bitsandbytes", "llamafactory.train.tuner"):
        try:
            importlib.import_module(module)
        except Exception as error:
            found["broken"][module] = f"{type(error).__name__}: {error}"
    if "torch" not in found["broken"]:
        import torch

        found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "hardware": vars(detect())}
    if not found["broken"]:
        try:
            _train_in_4_bit("cuda" if found["hardware"]["gpu"] else "cpu")
        except Exception as error:
            found["broken"]["bitsandbytes"] = f"{type(error).__name__}: {error}"
    return found


def _train_in_4_bit(device: str) -> None:
    """A forward and a backward pass through a 4-bit layer: its native library loads only now."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)  # type: ignore[no-untyped-call]
    inputs = torch.ones(2, 64, device=device, requires_grad=True)
    layer(inputs).sum().backward()


if __name__ == "__main__":
    result = probe()
    # After whatever the imports have printed.
    print(f"\n{json.dumps(result)}")
    sys.stdout.flush()
