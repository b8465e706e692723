"""What this machine has to train with."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """The GPU a run would use (None: the CPU) and whether it computes in bf16."""

    gpu: str | None
    bf16: bool

    @property
    def device(self) -> str:
        return self.gpu or "the CPU"


def detect(*, cpu_only: bool = False) -> Hardware:
    """Ask torch, which is what will train (this imports it).

    One GPU is used, the first unless CUDA_VISIBLE_DEVICES says otherwise: with more in sight
    LLaMA-Factory refuses to train without torchrun. With `cpu_only` all are hidden, because it puts
    the model on a GPU it sees whatever `use_cpu` says.
    """
    if cpu_only:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    import torch

    if not torch.cuda.is_available():
        # Every CPU has bf16, if only emulated; fp16 on a CPU is slower by far.
        return Hardware(gpu=None, bf16=True)
    return Hardware(torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False))
