"""What this machine has to train with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """The GPU a run would use (None: the CPU) and whether it computes in bf16."""

    gpu: str | None
    bf16: bool

    @property
    def device(self) -> str:
        return self.gpu or "the CPU"


def detect() -> Hardware:
    """Ask torch, which is what will train (this imports it)."""
    import torch

    if not torch.cuda.is_available():
        # Every CPU has bf16, if only emulated; fp16 on a CPU is several times slower (docs/benchmarks.md).
        return Hardware(gpu=None, bf16=True)
    return Hardware(torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False))
