"""What this machine has to train with."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from gettext import gettext as _
from gettext import ngettext
from pathlib import Path
from typing import Any

import psutil
from rich.filesize import decimal

from yi_tune.errors import YiTuneError
from yi_tune.language import Text, kept, told
from yi_tune.output import err


def reinstall(backend: str = "auto") -> str:
    """The command that installs a torch with kernels for this GPU and driver, and all that has to fit it.

    PyTorch's builds for CUDA 12.6 ("cu126") are the last for Pascal and older (.ci/manywheel/build_cuda.sh in PyTorch).
    """
    return (
        f"uv pip install --reinstall --torch-backend={backend} torch==2.10.0 torchvision==0.25.0 torchaudio==2.10.0 "
        "bitsandbytes==0.50.2 llamafactory==0.9.5"
    )


@dataclass(frozen=True)
class Hardware:
    """What a run would use: a GPU (None: the CPU), whether it computes in bf16 itself, and its free memory in bytes.

    With a `count` above one it is each of so many of the same kind, which CUDA_VISIBLE_DEVICES names as in `visible`;
    on the CPU each of so many processes, which share its memory. There may be `nodes` machines with as many each.
    """

    gpu: str | None
    bf16: bool
    free: int
    count: int = 1
    visible: str = ""
    nodes: int = 1

    @property
    def total(self) -> int:
        """How many there are on all machines together."""
        return self.count * self.nodes

    @property
    def device(self) -> str:
        return told(self.named)

    @property
    def named(self) -> Text:
        return self.gpu or kept("the CPU")

    @property
    def dtypes(self) -> list[str]:
        """The types that it computes in, by torch's names, the best first. It would emulate any other, slowly."""
        return [*(["bfloat16"] if self.bf16 else []), *(["float16"] if self.gpu else []), "float32"]

    @property
    def settings(self) -> dict[str, tuple[Any, Text]]:
        """The keys of LLaMA-Factory's config that are the machine's: values, and why.

        A CPU without bf16 is faster in float32, and without SDPA, than it emulates bf16 (docs/bench-cpu.md).
        """
        slow = not self.bf16 and self.gpu is None
        values = {"bf16": self.bf16, "fp16": not self.bf16 and not slow, "flash_attn": "disabled" if slow else "auto"}
        device = self.named
        why = kept("{device} has bf16", device=device) if self.bf16 else kept("{device} has no bf16", device=device)
        return {key: (value, why) for key, value in values.items()}


def detect(*, cpu_only: bool = False, gpus: int | None = 1) -> Hardware:
    """Ask torch, which is what will train (this imports it). With `cpu_only` every GPU is hidden.

    Used are those `gpus` (None: all) with the most memory free, of those in CUDA_VISIBLE_DEVICES, or of all. This
    process sees one: with more in sight LLaMA-Factory refuses to train without torchrun. They have to be chosen before
    anything starts CUDA. Raises YiTuneError for a GPU that is too old for this build of torch, and for several that are
    not there or not alike.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus != 1 and not cpu_only:
        return _several(gpus, listed)
    if cpu_only:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif listed is None and len(read_gpus()) <= 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    elif listed is None or "," in listed:
        os.environ["CUDA_VISIBLE_DEVICES"] = _freest(listed)
    with err.status(_("Looking at the machine")):
        from torch import cuda

        if not cuda.is_available():
            processes = gpus or 1
            return Hardware(None, cpu_has_bf16(), free_ram() // processes, processes)
        gpu = cuda.get_device_name()
        _check_age(gpu, cuda.get_device_capability(), cuda.get_arch_list())
        return Hardware(gpu, cuda.is_bf16_supported(including_emulation=False), cuda.mem_get_info()[0])


def uses_ray() -> bool:
    """Whether LLaMA-Factory is told to train in a Ray cluster, in words of its own."""
    return os.environ.get("USE_RAY", "").lower() in ("true", "y", "1")


def _freest(listed: str | None) -> str:
    """The GPU with the most memory free, as CUDA_VISIBLE_DEVICES names it, of those that it lists (None: of all)."""
    gpus = _see(listed)
    if not gpus:  # torch sees none of them
        return listed or "0"
    free, _gpu, name = gpus[0]
    err.print(
        _("GPU {name} of {count} is used: it has the most memory free, {free}.").format(
            name=name, count=len(gpus), free=decimal(free)
        )
    )
    return name


def _see(listed: str | None) -> list[tuple[int, str, str]]:
    """The GPUs that CUDA_VISIBLE_DEVICES lists (None: all), that with the most memory free first: bytes free, torch's
    name for it and the name that it has in the list.

    Another process asks, since this one could not choose any more afterwards; nvidia-smi numbers them otherwise.
    """
    ask = (
        "import json; from torch import cuda; gpus = range(cuda.device_count()); "
        "print(json.dumps([(cuda.mem_get_info(gpu)[0], cuda.get_device_name(gpu)) for gpu in gpus]))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)  # noqa: S603
    seen = json.loads(done.stdout) if done.returncode == 0 else []
    names = [name.strip() for name in listed.split(",")] if listed else [str(gpu) for gpu in range(len(seen))]
    gpus = [(free, gpu, name) for (free, gpu), name in zip(seen, names, strict=False)]
    return sorted(gpus, key=lambda gpu: gpu[0], reverse=True)


def _several(wanted: int | None, listed: str | None) -> Hardware:
    """So many GPUs (None: all); the free memory is that of the one with the least."""
    gpus = _see(listed)
    used = gpus[:wanted]
    if not gpus or len(used) < (wanted or 1):
        seen = ngettext("--gpus {wanted}: torch sees {n} GPU.", "--gpus {wanted}: torch sees {n} GPUs.", len(gpus))
        seen = seen if gpus else _("--gpus {wanted}: torch sees no GPU.")
        raise YiTuneError(
            seen.format(wanted=wanted or "all", n=len(gpus)),
            "yi-tune doctor looks for the reason. To try several processes on the CPU: --device cpu --gpus 2",
        )
    named = [_("{name} is a {gpu}").format(name=name, gpu=gpu) for _free, gpu, name in used]
    if len({gpu for _free, gpu, _name in used}) > 1:
        raise YiTuneError(
            "The GPUs differ: {named}.",
            "All would wait for the slowest. Name GPUs that are alike: CUDA_VISIBLE_DEVICES=0,1 yi-tune ... --gpus 2",
            named=", ".join(named),
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = used[0][2]
    found = detect()
    return replace(found, free=min(found.free, used[-1][0]), count=len(used), visible=",".join(gpu[2] for gpu in used))


def _check_age(gpu: str, capability: tuple[int, int], built_for: list[str]) -> None:
    """Raise YiTuneError when torch has no kernels for a GPU of this compute capability.

    Kernels run on GPUs of the same major version and the same minor version or a newer one; PTX (compute_...) is
    compiled for every newer GPU (CUDA C++ Programming Guide, sections "Binary Compatibility" and "PTX Compatibility").
    """
    for name in built_for:
        kind, _line, version = name.rstrip("af").partition("_")
        if kind not in ("sm", "compute"):  # an AMD GPU's, as gfx90a, which another rule is for
            return
        built = divmod(int(version), 10)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return
    raise YiTuneError(
        "{gpu} has compute capability {capability}, and this build of torch has kernels for {built_for} only.",
        "Take a build that has its: {command}   (or train on the CPU: --device cpu)",
        gpu=gpu,
        capability=".".join(map(str, capability)),
        built_for=", ".join(built_for),
        command=reinstall("cu126" if capability < (7, 5) else "auto"),
    )


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
