"""What of this machine stands in the way of training, and what to do about it: `yi-tune doctor`."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.filesize import decimal

from yi_tune.config import find_config, read_config
from yi_tune.data.identity import Identity, identity_rows, render
from yi_tune.data.replay import choose_prompts
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Gpu, Hardware, free_ram, read_gpus
from yi_tune.hubs import PATIENCE, Hub, hubs_of
from yi_tune.hubs.download import cached
from yi_tune.models import LocalModel, check_model, find_model
from yi_tune.plan.memory import choose_fit, longest_row, refuse
from yi_tune.screen import err

Verdict = Literal["ok", "warning", "error"]

_TORCH = "uv pip install --reinstall --torch-backend=auto torch==2.10.0 torchvision==0.25.0 torchaudio==2.10.0"
# The oldest driver for each major version of CUDA, by its minor-version compatibility
# (docs.nvidia.com/deploy/cuda-compatibility).
_DRIVERS = {11: 450, 12: 525, 13: 580}
# Bytes of a run: adapter, checkpoints with the optimiser's state, logs. And of RAM beside a GPU, for Python and its
# libraries and for weights on their way to the GPU.
_RUN, _RAM = 1_000_000_000, 4_000_000_000
_LONGEST_PROBE = 180  # seconds; importing everything takes 10 on two cores


@dataclass(frozen=True)
class Check:
    """Something that was looked at: what was found, and where that is wrong what mends it."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All that was looked at for training `model`; sizes in bytes."""

    model: str
    machine: dict[str, Any]
    checks: list[Check]

    @property
    def can_train(self) -> bool:
        return all(check.verdict != "error" for check in self.checks)


def diagnose(model: str, workspace: Path) -> Diagnosis:
    """Look at everything that training `model` in `workspace` depends on. Raises YiTuneError for an unknown model."""
    local = find_model(model, workspace)
    with err.status("Looking at the machine"):
        gpus, probe, ram = read_gpus(), _probe(), free_ram()
        hardware = Hardware(**probe["hardware"]) if probe["hardware"] else None
        place = next(folder for folder in (workspace, *workspace.parents) if folder.is_dir())
        disk = shutil.disk_usage(place).free
        here = _model(local)
        checks = [
            *_packages(probe["broken"]),
            _gpu(local, gpus, probe, hardware),
            Check("cpu and ram", "ok", f"{psutil.cpu_count()} cores, {decimal(ram)} of RAM free")
            if ram >= _RAM or not local.needs_gpu
            else Check("cpu and ram", "warning", f"{decimal(ram)} of RAM free", f"{decimal(_RAM)} are safer."),
            *([_memory(local, hardware)] if hardware and (hardware.gpu or not local.needs_gpu) else []),
            _workspace(workspace, place),
            _disk(local, here, disk, place),
            here,
            *_hubs(local, here),
        ]
    machine = {
        "gpus": [vars(gpu) for gpu in gpus],
        "used": probe["hardware"],
        "torch": probe["torch"],
        "cuda": probe["cuda"],
        "cores": psutil.cpu_count(),
        "ram_free": ram,
        "disk_free": disk,
    }
    return Diagnosis(local.model.name, machine, checks)


def _probe() -> dict[str, Any]:
    command = [sys.executable, "-m", "yi_tune.engine.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_PROBE, check=False)  # noqa: S603
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        why = f"importing it takes more than {_LONGEST_PROBE} s"
    except (IndexError, ValueError):
        why = f"importing it ends Python (status {done.returncode}): {done.stderr.strip()[-300:]}"
    else:
        return result
    return {"torch": None, "cuda": None, "hardware": None, "broken": {"torch": why}}


def _packages(broken: dict[str, str]) -> list[Check]:
    """torch and its two companions; what builds on them; what should not be there."""
    names = ("torch", "torchvision", "torchaudio")
    versions = {name: _version(name) for name in names}
    found = ", ".join(f"{name} {version or 'is missing'}" for name, version in versions.items())
    checks = []
    if why := next((f"{name}: {broken[name]}" for name in names if name in broken), ""):
        checks.append(Check("torch", "error", f"{found}. {why}", _TORCH))
    elif not _in_step(*versions.values()):
        checks.append(Check("torch", "error", f"{found}: these are not made for one another.", _TORCH))
    else:
        checks.append(Check("torch", "ok", found))
    for module, package in (("bitsandbytes", "bitsandbytes"), ("llamafactory.train.tuner", "llamafactory")):
        version = _version(package)
        if checks[0].verdict == "ok" and module in broken:
            remedy = f"uv pip install --reinstall-package {package} {package}" + (f"=={version}" if version else "")
            checks.append(Check(package, "error", f"{version or 'missing'}; {broken[module]}", remedy))
        elif module not in broken:
            checks.append(Check(package, "ok", version))
    if find_spec("kernels"):
        why = "is installed: with it bitsandbytes fetches and runs native code from a hub when it is imported"
        checks.append(Check("kernels", "warning", why, "uv pip uninstall kernels"))
    return checks


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _in_step(torch: str, torchvision: str, torchaudio: str) -> bool:
    """torch 2.N goes with torchvision 0.(N + 15) and torchaudio 2.N."""
    try:
        minors = [int(version.split(".")[1]) for version in (torch, torchvision, torchaudio)]
    except (IndexError, ValueError):
        return False
    return minors == [minors[0], minors[0] + 15, minors[0]]


def _gpu(local: LocalModel, gpus: list[Gpu], probe: dict[str, Any], hardware: Hardware | None) -> Check:
    seen = "; ".join(
        f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {decimal(gpu.free)} of "
        f"{decimal(gpu.total)} free, driver {gpu.driver}"
        for gpu in gpus
    )
    if hardware and hardware.gpu:
        precision = "bf16" if hardware.bf16 else "fp16"
        return Check("gpu", "ok", f"{seen or hardware.gpu}; torch for CUDA {probe['cuda']}; trains in {precision}")
    if not gpus:
        found, remedy = "no CUDA GPU, or no NVIDIA driver (nvidia-smi lists none)", "Install the driver for the GPU"
    else:
        found, remedy = _unused(gpus[0], probe)
        found = f"{seen}, but torch sees none: {found}"
    if local.needs_gpu:
        return Check("gpu", "error", found, f"{remedy}. Or a model that needs none: --model nano")
    found = f"{found}; {local.model.name} needs none"
    return Check("gpu", "warning", found, remedy) if gpus else Check("gpu", "ok", found)


def _unused(gpu: Gpu, probe: dict[str, Any]) -> tuple[str, str]:
    """Why torch does not see a GPU that the driver lists, and what to do."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not hidden.strip().strip("-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides it", "unset CUDA_VISIBLE_DEVICES"
    driver, cuda = gpu.driver.split(".")[0], probe["cuda"]
    if not probe["torch"] or not driver.isdecimal():
        return "torch does not load", _TORCH
    if cuda is None:
        return f"torch {probe['torch']} is built without CUDA", _TORCH
    oldest = _DRIVERS.get(int(cuda.split(".")[0]), max(_DRIVERS.values()))
    if int(driver) < _DRIVERS[12]:
        return f"driver {gpu.driver} is older than CUDA 12 takes", f"Update the driver to {_DRIVERS[12]} or newer"
    if int(driver) < oldest:
        return f"torch {probe['torch']} is built for CUDA {cuda}, whose driver is {oldest} or newer", _TORCH
    return f"CUDA {cuda} does not start", "Restart the machine: driver and kernel module may be out of step"


def _memory(local: LocalModel, hardware: Hardware) -> Check:
    """Whether the default config fits, on the identity rows and the base's own answers."""
    config = read_config(find_config("qlora"))
    rows, prompts = render(identity_rows(), Identity("Yi-tune", "yi-tune")), choose_prompts(local.model.replay)
    length = longest_row(local, config, rows, None, prompts)
    fit = choose_fit(local.shape, config, length, hardware)
    if not fit.fits:
        error = refuse(fit, local.model.name, replay=bool(prompts))
        return Check("memory", "error", error.message, error.hint)
    return Check("memory", "ok", f"{fit.summary} Micro-batch {fit.micro_batch} x {fit.accumulation}.")


def _workspace(workspace: Path, place: Path) -> Check:
    try:
        if workspace.exists() and not workspace.is_dir():
            raise NotADirectoryError(f"{workspace} is no folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check("workspace", "error", f"{workspace} cannot be written: {error}", "Another place: --workspace DIR")
    return Check("workspace", "ok", f"{workspace} can be written")


def _disk(local: LocalModel, here: Check, free: int, place: Path) -> Check:
    shape = local.shape
    needed = _RUN + (shape.weight_bytes if shape and here.verdict != "ok" else 0)
    if free < needed:
        what = f"{decimal(free)} free in {place}; {decimal(needed)} are needed"
        return Check("disk", "error", what, "Free some, or take another place: --workspace DIR")
    return Check("disk", "ok", f"{decimal(free)} free")


def _model(local: LocalModel) -> Check:
    """Whether it is here; one that is yet to be downloaded is a warning, until no hub gives it."""
    try:
        if not local.downloaded and (found := cached(local.model)):
            return Check("model", "ok", f"{local.model.name} is in {found[0]} ({found[1].source})")
        check_model(local)
    except YiTuneError as error:
        return Check("model", "error" if local.downloaded else "warning", error.message, error.hint)
    return Check("model", "ok", f"{local.model.name} is in {local.path}")


def _hubs(local: LocalModel, here: Check) -> list[Check]:
    """Each hub that has the model; an error when it is needed, and none can be reached."""
    hubs = hubs_of(local.model.huggingface, local.model.modelscope, None)
    if not hubs:
        return []
    with ThreadPoolExecutor(len(hubs)) as pool:
        answers = list(pool.map(_silence, hubs))
    needed = here.verdict != "ok" and all(answers)
    remedy = "Check the network and HTTPS_PROXY, or name a mirror: HF_ENDPOINT or MODELSCOPE_ENDPOINT"
    return [
        Check(hub.name, "ok", f"{hub.endpoint} answers")
        if not why
        else Check(hub.name, "error" if needed else "warning", f"{hub.endpoint} cannot be reached: {why}", remedy)
        for hub, why in zip(hubs, answers, strict=True)
    ]


def _silence(hub: Hub) -> str:
    """Why a hub does not answer; "" when it does, whatever it says."""
    try:
        request = urllib.request.Request(hub.endpoint, method="HEAD")  # noqa: S310
        with urllib.request.urlopen(request, timeout=PATIENCE):  # noqa: S310
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """A line a check, and under what is wrong its remedy."""
    for check in diagnosis.checks:
        style = {"ok": "green", "warning": "yellow", "error": "bold red"}[check.verdict]
        console.print(f"[{style}]{check.verdict:8}[/]", end="")
        console.print(f"{check.name:14} {check.found}", markup=False, soft_wrap=True)
        if check.remedy:
            console.print(f"{'':22} -> {check.remedy}", markup=False, soft_wrap=True)
    verdict = "can be trained here" if diagnosis.can_train else "cannot be trained here yet"
    console.print(f"\n{diagnosis.model} {verdict}.", markup=False)
