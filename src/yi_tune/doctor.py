"""The faults of this machine that stand in the way of training, and their remedies: `yi-tune doctor`."""

import importlib
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from gettext import gettext as _
from importlib.metadata import version
from pathlib import Path

from rich.filesize import decimal

from yi_tune.config import find_config, read_config
from yi_tune.data.general import LONGEST
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware, detect, read_gpus, reinstall
from yi_tune.hubs import PATIENCE, check_way, hubs_of
from yi_tune.hubs.download import cached
from yi_tune.models import LocalModel, find_model
from yi_tune.output import err
from yi_tune.plan.fit import EFFECTIVE_BATCH, choose_fit, refuse
from yi_tune.weights import check_model

_RUN = 1_000_000_000  # bytes of a run: adapter, checkpoints with the optimiser's state, logs

Check = dict[str, str]  # name, verdict, found and remedy


def diagnose(model: str, workspace: Path) -> list[Check]:
    """All that training `model` in `workspace` depends on. Raises YiTuneError for an unknown model."""
    local = find_model(model, workspace)
    with err.status(_("Loading the packages")):
        packages, hardware = _packages(), None
    try:
        hardware = detect() if packages["verdict"] == "ok" else None
        checks = [packages, _gpu(local, hardware)]
    except YiTuneError as error:  # the GPU is too old
        checks = [packages, _check("gpu", error.message, error.hint)]
    if hardware and (hardware.gpu or not local.needs_gpu):
        checks.append(_memory(local, hardware))
    here = _model(local)
    checks += [here, _disk(local, workspace, here)]
    return [*checks, _hub(local)] if here["verdict"] == "warning" else checks


def _check(name: str, found: str, remedy: str = "", verdict: str = "error") -> Check:
    """A check, which is ok where there is nothing to remedy."""
    return {"name": name, "verdict": verdict if remedy else "ok", "found": found, "remedy": remedy}


def _packages() -> Check:
    """The result of `probe` in a process of its own: an extension that does not fit the others may end it."""
    command = [sys.executable, "-c", "from yi_tune.doctor import probe; probe()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        why = _("They do not load (status {status}): {said}").format(
            status=done.returncode, said=done.stderr.strip()[-300:]
        )
        return _check("packages", why, reinstall())
    said = _("torch {version} and all that training loads beside it")
    return _check("packages", said.format(version=version("torch")))


def probe() -> None:
    """Import all that training loads, and take a step of it in 4 bits unless the GPU is too old."""
    device = None
    with suppress(YiTuneError):  # before LLaMA-Factory's import starts CUDA, with whichever GPU comes first
        device = "cuda" if detect().gpu else "cpu"
    for module in ("torchvision", "torchaudio", "llamafactory.train.tuner"):
        importlib.import_module(module)
    import torch

    if device:
        # Its native library is loaded only when a 4-bit layer is trained.
        linear = importlib.import_module("bitsandbytes").nn.Linear4bit
        layer = linear(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
        layer(torch.ones(2, 64, device=device, requires_grad=True)).sum().backward()


def _gpu(local: LocalModel, hardware: Hardware | None) -> Check:
    """Whether torch sees a GPU, or the model needs none."""
    gpus = read_gpus()
    seen = _("; ").join(_("{name}, {free} of {total} free, driver {driver}").format(**gpu) for gpu in gpus)
    if hardware and hardware.gpu:
        told = _("{gpus}; trains in bf16") if hardware.bf16 else _("{gpus}; trains in fp16")
        return _check("gpu", told.format(gpus=seen or hardware.gpu))
    seen = _("{gpus}, but torch sees none").format(gpus=seen)
    remedy = _("Update the driver, or take a torch for this one: {command}").format(command=reinstall())
    if not gpus:
        seen = _("no CUDA GPU, or no NVIDIA driver (nvidia-smi lists none)")
        remedy = _("Install the driver for the GPU")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        remedy = _("unset CUDA_VISIBLE_DEVICES, which hides it")
    if local.needs_gpu:
        without = _("{remedy}. Or go without: train --device cpu, for hours, or --model nano")
        return _check("gpu", seen, without.format(remedy=remedy))
    seen = _("{found}; {model} needs none").format(found=seen, model=local.model.name)
    return _check("gpu", seen, remedy if gpus else "", "warning")


def _memory(local: LocalModel, hardware: Hardware) -> Check:
    """Whether the default config fits, on rows as long as the base's own answers may be."""
    fit = choose_fit(local.shape, read_config(find_config("qlora")), [LONGEST] * EFFECTIVE_BATCH, hardware)
    if not fit.fits:
        error = refuse(fit, local.model.name)
        return _check("memory", error.message, error.hint)
    found = _("{summary} Micro-batch {rows} x {steps}.")
    return _check("memory", found.format(summary=fit.summary, rows=fit.micro_batch, steps=fit.accumulation))


def _disk(local: LocalModel, workspace: Path, here: Check) -> Check:
    place = next(folder for folder in (workspace, *workspace.parents) if folder.exists())
    needed = _RUN + (local.shape.weight_bytes if local.shape and here["verdict"] != "ok" else 0)
    free = shutil.disk_usage(place).free if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else 0
    found = _("{free} can be written in {place}; {needed} are needed").format(
        free=decimal(free), place=place, needed=decimal(needed)
    )
    return _check("disk", found, "" if free >= needed else _("Free some space, or take another place: --workspace DIR"))


def _model(local: LocalModel) -> Check:
    """Whether it is here; one that is yet to be downloaded is a warning, until no hub gives it."""
    try:
        if not local.downloaded and (found := cached(local.model)):
            path, origin = found
            said = _("{model} is in {path} ({source})")
            return _check("model", said.format(model=local.model.name, path=path, source=origin.source))
        check_model(local)
    except YiTuneError as error:
        return _check("model", error.message, error.hint, "error" if local.downloaded else "warning")
    return _check("model", _("{model} is in {path}").format(model=local.model.name, path=local.path))


def _hub(local: LocalModel) -> Check:
    """Whether a hub that has the model answers."""
    import httpx

    faults = []
    for hub in hubs_of(local.model, None):
        try:
            check_way(hub)
            httpx.head(hub.endpoint, timeout=PATIENCE)
            return _check("hub", _("{address} answers").format(address=hub.endpoint))
        except YiTuneError as error:
            return _check("hub", error.message, error.hint)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            faults.append(_("{address} cannot be reached: {error}").format(address=hub.endpoint, error=error))
    remedy = _("Check the network and HTTPS_PROXY, or name a mirror: HF_ENDPOINT or MODELSCOPE_ENDPOINT")
    return _check("hub", _("; ").join(faults), remedy)
