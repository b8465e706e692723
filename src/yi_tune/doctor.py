"""The faults of this machine that stand in the way of training, and their remedies: `yi-tune doctor`."""

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.filesize import decimal

from yi_tune.config import find_config, read_config
from yi_tune.data.general import replay_prompts
from yi_tune.data.identity import Identity, identity_rows, render
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Gpu, Hardware, detect, free_ram, read_gpus
from yi_tune.hubs import PATIENCE, Hub, hubs_of
from yi_tune.hubs.download import cached
from yi_tune.models import LocalModel, check_model, find_model
from yi_tune.output import err
from yi_tune.plan.memory import choose_fit, longest_row, refuse

_TORCH = "uv pip install --reinstall --torch-backend=auto torch==2.10.0 torchvision==0.25.0 torchaudio==2.10.0"
# The packages that training loads, each with its modules. Where one fails the next ones may fail because of it.
_PACKAGES = {
    "torch": ("torch", "torchvision", "torchaudio"),
    "bitsandbytes": ("bitsandbytes",),
    "llamafactory": ("llamafactory.train.tuner",),
}
# Bytes of a run: adapter, checkpoints with the optimiser's state, logs. And of RAM beside a GPU, for Python and its
# libraries and for weights on their way to the GPU.
_RUN, _RAM = 1_000_000_000, 4_000_000_000
_LONGEST_PROBE = 180  # seconds; importing everything takes 10 on two cores


Verdict = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """A finding, and the remedy where it is wrong."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings for training `model`; sizes in bytes."""

    can_train: bool
    model: str
    machine: dict[str, Any]
    checks: list[Check]


def diagnose(model: str, workspace: Path) -> Diagnosis:
    """Look at everything that training `model` in `workspace` depends on. Raises YiTuneError for an unknown model."""
    local = find_model(model, workspace)
    with err.status("Looking at the machine"):
        gpus, found, cores, ram = read_gpus(), _probe(), psutil.cpu_count(), free_ram()
        broken, hardware = found.pop("broken"), Hardware(**found["used"]) if found["used"] else None
        place = next(folder for folder in (workspace, *workspace.parents) if folder.is_dir())
        disk, here = shutil.disk_usage(place).free, _model(local)
        needed = _RUN + (local.shape.weight_bytes if local.shape and here.verdict != "ok" else 0)
        checks = [*_packages(broken), _gpu(local, gpus, found, hardware)]
        said, enough = f"{cores} cores, {decimal(ram)} of RAM free", ram >= _RAM or not local.needs_gpu
        checks.append(_check("cpu and ram", enough, said, f"{decimal(_RAM)} are safer.", "warning"))
        if hardware and (hardware.gpu or not local.needs_gpu):
            checks.append(_memory(local, hardware))
        checks += [*_room(workspace, place, disk, needed), here, *_hubs(local, here)]
    machine = {"gpus": [vars(gpu) for gpu in gpus], **found, "cores": cores, "ram_free": ram, "disk_free": disk}
    return Diagnosis(all(check.verdict != "error" for check in checks), local.model.name, machine, checks)


def _check(name: str, right: bool, found: str, remedy: str, verdict: Verdict = "error") -> Check:
    """A check that has that verdict, and a remedy, where it is not `right`."""
    return Check(name, "ok", found) if right else Check(name, verdict, found, remedy)


def _probe() -> dict[str, Any]:
    """The result of `probe` in a process of its own: an extension that does not fit the others may end it."""
    command = [sys.executable, "-m", "yi_tune.doctor"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_PROBE, check=False)  # noqa: S603
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        why = f"importing it takes more than {_LONGEST_PROBE} s"
    except (IndexError, ValueError):
        why = f"importing it ends Python (status {done.returncode}): {done.stderr.strip()[-300:]}"
    else:
        return result
    return {"used": None, "torch": None, "cuda": None, "broken": {"torch": why}}


def probe() -> dict[str, Any]:
    """Versions, the hardware that a run would use, and under `broken` each module that does not load, with the reason.

    A 4-bit layer is trained too: bitsandbytes loads its native library only then.
    """
    found: dict[str, Any] = {"used": None, "torch": None, "cuda": None, "broken": {}}
    for module in (module for modules in _PACKAGES.values() for module in modules):
        try:
            loaded = importlib.import_module(module)
            if module == "torch":
                torch, found["used"] = loaded, vars(detect())
                found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
            if module == "bitsandbytes":
                device = "cuda" if found["used"]["gpu"] else "cpu"
                layer = loaded.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
                layer.to(device)(torch.ones(2, 64, device=device, requires_grad=True)).sum().backward()
        except Exception as error:
            found["broken"][module] = f"{type(error).__name__}: {error}"
    return found


def _packages(broken: dict[str, str]) -> list[Check]:
    versions = {package.name: package.version for package in importlib.metadata.distributions()}
    checks = []
    for package, modules in _PACKAGES.items():
        names = modules if package == "torch" else (package,)
        found = ", ".join(f"{name} {versions.get(name, 'is missing')}" for name in names)
        if why := next((f"{module}: {broken[module]}" for module in modules if module in broken), ""):
            wanted = f"{package}=={versions[package]}" if package in versions else package
            remedy = _TORCH if package == "torch" else f"uv pip install --reinstall-package {package} {wanted}"
            checks.append(Check(package, "error", f"{found}. {why}", remedy))
            break
        checks.append(Check(package, "ok", found))
    if find_spec("kernels"):
        why = "is installed: with it bitsandbytes fetches and runs native code from a hub when it is imported"
        checks.append(Check("kernels", "warning", why, "uv pip uninstall kernels"))
    return checks


def _gpu(local: LocalModel, gpus: list[Gpu], found: dict[str, Any], hardware: Hardware | None) -> Check:
    seen = "; ".join(
        f"{gpu.name}, compute capability {gpu.capability}, {decimal(gpu.free)} of {decimal(gpu.total)} free, "
        f"driver {gpu.driver}"
        for gpu in gpus
    )
    if hardware and hardware.gpu:
        precision = "bf16" if hardware.bf16 else "fp16"
        return Check("gpu", "ok", f"{seen or hardware.gpu}; torch for CUDA {found['cuda']}; trains in {precision}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    said = f"{seen}, but torch sees none"
    if not gpus:
        said, remedy = "no CUDA GPU, or no NVIDIA driver (nvidia-smi lists none)", "Install the driver for the GPU"
    elif hidden is not None and not hidden.strip().strip("-1"):
        said, remedy = f"{said}: CUDA_VISIBLE_DEVICES={hidden!r} hides it", "unset CUDA_VISIBLE_DEVICES"
    elif found["cuda"] is None:
        said, remedy = f"{said}: torch {found['torch']} is built without CUDA", _TORCH
    else:
        said = f"{said}: torch {found['torch']} is built for CUDA {found['cuda']}, which may want a newer driver"
        remedy = f"A torch for this driver: {_TORCH}. Or update the driver, and restart the machine"
    if local.needs_gpu:
        return Check("gpu", "error", said, f"{remedy}. Or a model that needs none: --model nano")
    return _check("gpu", not gpus, f"{said}; {local.model.name} needs none", remedy, "warning")


def _memory(local: LocalModel, hardware: Hardware) -> Check:
    """Whether the default config fits, on the identity rows and the base's own answers."""
    config = read_config(find_config("qlora"))
    rows, prompts = render(identity_rows(), Identity("Yi-tune", "yi-tune")), replay_prompts(local.model.replay)
    fit = choose_fit(local.shape, config, longest_row(local, config, rows, None, prompts), hardware)
    if not fit.fits:
        error = refuse(fit, local.model.name, replay=bool(prompts))
        return Check("memory", "error", error.message, error.hint)
    return Check("memory", "ok", f"{fit.summary} Micro-batch {fit.micro_batch} x {fit.accumulation}.")


def _room(workspace: Path, place: Path, free: int, needed: int) -> list[Check]:
    writable = not workspace.is_file() and os.access(place, os.W_OK | os.X_OK)
    remedy = "Free some space, or take another place: --workspace DIR"
    return [
        _check("workspace", writable, f"{workspace} can{'' if writable else 'not'} be written", remedy),
        _check("disk", free >= needed, f"{decimal(free)} free in {place}; {decimal(needed)} are needed", remedy),
    ]


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
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(_answer, hubs))
    verdict: Verdict = "warning" if here.verdict == "ok" or "answers" in answers else "error"
    remedy = "Check the network and HTTPS_PROXY, or name a mirror: HF_ENDPOINT or MODELSCOPE_ENDPOINT"
    return [
        _check(hub.name, answer == "answers", f"{hub.endpoint} {answer}", remedy, verdict)
        for hub, answer in zip(hubs, answers, strict=True)
    ]


def _answer(hub: Hub) -> str:
    try:
        urllib.request.urlopen(urllib.request.Request(hub.endpoint, method="HEAD"), timeout=PATIENCE).close()  # noqa: S310
    except urllib.error.HTTPError:  # any answer is one
        pass
    except (OSError, ValueError) as error:
        return f"cannot be reached: {getattr(error, 'reason', error)}"
    return "answers"


if __name__ == "__main__":
    result = probe()
    # After whatever the imports have printed.
    print(f"\n{json.dumps(result)}", flush=True)
