"""What this machine has to train with."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver sees it: memory in bytes, compute capability as (major, minor)."""

    uuid: str
    name: str
    capability: tuple[int, int]
    total: int
    free: int
    driver: str


@dataclass(frozen=True)
class Hardware:
    """What a run would use: a GPU (None: the CPU), whether it has bf16, and the bytes of its memory that are free."""

    gpu: str | None
    bf16: bool
    free: int

    @property
    def device(self) -> str:
        return self.gpu or "the CPU"


def detect(*, cpu_only: bool = False) -> Hardware:
    """Ask torch, which is what will train (this imports it).

    One GPU is used, that with the most memory free unless CUDA_VISIBLE_DEVICES says otherwise: with more in sight
    LLaMA-Factory refuses to train without torchrun. With `cpu_only` all are hidden, because it puts
    the model on a GPU it sees whatever `use_cpu` says.
    """
    if cpu_only:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif "CUDA_VISIBLE_DEVICES" not in os.environ:
        gpus = read_gpus()
        # By its UUID: the driver and CUDA number them differently.
        os.environ["CUDA_VISIBLE_DEVICES"] = max(gpus, key=lambda gpu: gpu.free).uuid if len(gpus) > 1 else "0"
    import torch

    if not torch.cuda.is_available():
        # Every CPU has bf16, if only emulated; fp16 on a CPU is slower by far. Whether float32 is faster still on a
        # CPU that emulates it: not measured yet.
        return Hardware(gpu=None, bf16=True, free=free_ram())
    return Hardware(
        torch.cuda.get_device_name(),
        torch.cuda.is_bf16_supported(including_emulation=False),
        torch.cuda.mem_get_info()[0],
    )


def read_gpus() -> list[Gpu]:
    """Every GPU that the driver's nvidia-smi lists, whether torch can use it or not; none where it does not work."""
    fields = "uuid,name,compute_cap,memory.total,memory.free,driver_version"
    gpus = []
    for line in _nvidia_smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits").splitlines():
        try:
            uuid, name, capability, total, free, driver = (part.strip() for part in line.split(","))
            major, minor = (int(part) for part in capability.split("."))
            gpus.append(Gpu(uuid, name, (major, minor), int(total) * 2**20, int(free) * 2**20, driver))
        except ValueError:  # "No devices were found", "[N/A]"
            continue
    return gpus


def _nvidia_smi(*arguments: str) -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def free_ram(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of RAM that this process may still take, with what it has already: of the machine, or of its container."""
    free = psutil.virtual_memory().available
    try:
        limit = int((control_group / "memory.max").read_text())
        statistics = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
        # Pages of files that nobody has used of late are given back before anything is killed.
        used = int((control_group / "memory.current").read_text()) - int(statistics["inactive_file"])
        free = min(free, limit - used)
    except (OSError, ValueError, KeyError):  # no limit ("max"), or another system
        pass
    return free + psutil.Process().memory_info().rss
