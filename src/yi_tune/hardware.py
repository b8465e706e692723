"""What this machine has to train with."""

import os
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Hardware:
    """What a run would use: a GPU (None: the CPU), whether it computes in bf16 itself, and its free memory in bytes."""

    gpu: str | None
    bf16: bool
    free: int

    @property
    def device(self) -> str:
        return self.gpu or "the CPU"

    @property
    def settings(self) -> dict[str, tuple[Any, str]]:
        """The keys of LLaMA-Factory's config that are the machine's: values, and why.

        A CPU without bf16 is faster in float32, and without SDPA, than it emulates bf16 (docs/bench-cpu.md).
        """
        slow = not self.bf16 and self.gpu is None
        values = {"bf16": self.bf16, "fp16": not self.bf16 and not slow, "flash_attn": "disabled" if slow else "auto"}
        return {key: (value, f"{self.device} has {'' if self.bf16 else 'no '}bf16") for key, value in values.items()}


def detect(*, cpu_only: bool = False) -> Hardware:
    """Ask torch, which is what will train (this imports it). With `cpu_only` every GPU is hidden.

    One GPU is used, that with the most memory free unless CUDA_VISIBLE_DEVICES says otherwise: with more in sight
    LLaMA-Factory refuses to train without torchrun.
    """
    if cpu_only:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif "CUDA_VISIBLE_DEVICES" not in os.environ:
        gpus = read_gpus()
        # By its UUID: the driver and CUDA number them differently.
        freest = max(gpus, key=lambda gpu: int(gpu["free"].removesuffix(" MiB")), default={})
        os.environ["CUDA_VISIBLE_DEVICES"] = freest["uuid"] if len(gpus) > 1 else "0"
    from torch import cuda

    if not cuda.is_available():
        return Hardware(None, cpu_has_bf16(), free_ram())
    return Hardware(cuda.get_device_name(), cuda.is_bf16_supported(including_emulation=False), cuda.mem_get_info()[0])


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether Linux lists bf16 among the CPU's features: torch has no public function that tells. False elsewhere."""
    with suppress(OSError):
        return bool(re.search(r"\b(avx512_|amx_)?bf16\b", cpuinfo.read_text(encoding="utf-8", errors="replace")))
    return False


def read_gpus() -> list[dict[str, str]]:
    """Every GPU that nvidia-smi lists, by its fields, whether torch can use it or not; none where it does not work."""
    fields = ("uuid", "name", "total", "free", "driver")
    command = ["nvidia-smi", "--query-gpu=uuid,name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    known = [line for line in listed.splitlines() if line.startswith("GPU-") and "[N/A]" not in line]
    return [dict(zip(fields, line.split(", "), strict=True)) for line in known]


def free_ram(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of RAM that this process may still take, with what it has already: of the machine, or of its container."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError, KeyError):  # no limit ("max"), or another system
        limit = int((control_group / "memory.max").read_text())
        statistics = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
        # Pages of files that nobody has used of late are given back before anything is killed.
        used = int((control_group / "memory.current").read_text()) - int(statistics["inactive_file"])
        free = min(free, limit - used)
    return free + psutil.Process().memory_info().rss
