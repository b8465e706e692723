"""`yi-tune models`: the catalogue and what else is in the workspace, and where each is on this machine."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from yi_tune.hubs.download import cached
from yi_tune.models import CATALOGUE, LocalModel, Model, read_origin
from yi_tune.plan.memory import estimate

# 4-bit QLoRA in the smallest steps, on rows as short as the identity's.
_LEAST = {"quantization_bit": 4, "per_device_train_batch_size": 1}
_LENGTH = 128


@dataclass(frozen=True)
class Listed:
    """A model of the list; sizes in bytes, None where they are not known before it is here."""

    name: str
    parameters: int | None
    weight_bytes: int | None
    qlora_bytes_estimated: int | None
    path: str | None
    source: str | None
    commit: str | None


def list_models(workspace: Path) -> list[Listed]:
    """Every model of the catalogue, then every other that was downloaded into the workspace."""
    known = {model.path(workspace): model for model in CATALOGUE.values()}
    others = {
        file.parent: Model(origin.repository, file.parent.name, origin.repository, origin.repository)
        for file in sorted((workspace / "models").glob("*/download.json"))
        if file.parent not in known and (origin := read_origin(file.parent))
    }
    return [_listed(LocalModel(model, path)) for path, model in (known | others).items()]


def _listed(local: LocalModel) -> Listed:
    path: Path | None = None
    source: str | None = None
    commit: str | None = None
    if local.downloaded:
        path, source = local.path, "shipped with yi-tune"
        if origin := read_origin(path):
            source, commit = origin.source, origin.commit
    elif found := cached(local.model):
        path, source, commit = found[0], found[1].source, found[1].commit
    shape = LocalModel(local.model, path or local.path).shape
    return Listed(
        local.model.name,
        shape.parameters if shape else None,
        shape.weight_bytes if shape else None,
        estimate(shape, _LEAST, _LENGTH, "cuda").total if shape else None,
        str(path) if path else None,
        source,
        commit,
    )


def print_models(models: list[Listed], console: Console) -> None:
    """One line a model, and what is estimated of it."""
    lines = [("model", "parameters", "on disk", "QLoRA memory*", "on this machine")]
    for model in models:
        parameters = "" if model.parameters is None else f"{model.parameters / 1e9:.3f} B"
        disk, memory = (
            "" if size is None else decimal(size) for size in (model.weight_bytes, model.qlora_bytes_estimated)
        )
        lines.append((model.name, parameters, disk, memory, f"{model.path} ({model.source})" if model.path else "no"))
    for name, parameters, disk, memory, where in lines:
        console.print(f"{name:20} {parameters:>10} {disk:>9} {memory:>13}  {where}", markup=False, soft_wrap=True)
    console.print("\n* the least it takes: an estimate, not measured yet on a GPU")
