"""A model's files: which of them a load needs, and whether they are whole and of Yi's kind."""

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from gettext import gettext as _
from pathlib import Path

from yi_tune.errors import YiTuneError
from yi_tune.models import INDEX, NEEDED, LocalModel, workspace_option


def needed_files(names: Iterable[str], repository: str) -> list[str]:
    """The files of a repository that a load needs, code not among them. Raises YiTuneError where some are missing."""
    needed = [name for name in names if any(fnmatchcase(name, pattern) for pattern in NEEDED)]
    if "config.json" not in needed or not {"model.safetensors", INDEX} & set(needed):
        raise YiTuneError(
            "{repository} has no config.json, or no weights in safetensors.",
            "Weights in .bin or .pt are pickles, which can run code. Choose a repository with safetensors.",
            repository=repository,
        )
    if "model.safetensors" in needed:  # transformers loads it, and none of the shards beside it
        return [name for name in needed if not name.startswith("model-") and name != INDEX]
    return needed


def check_architecture(path: Path, name: str, remedy: str) -> None:
    """Read config.json in the folder `path`; raise YiTuneError when the model `name` is not of Yi's kind."""
    try:
        architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise YiTuneError(
            _("{path} is no model: its config.json is missing or broken.").format(path=path), remedy
        ) from None
    if architecture != "llama":
        raise YiTuneError(
            "{name} is a {architecture!r} model; Yi-1.5 models are of type 'llama'.",
            "yi-tune trains and talks with Yi's chat format only.",
            name=name,
            architecture=architecture,
        )


def read_header(file: Path) -> None:
    """Read the header of a file in safetensors. Raises ValueError when it is broken, or the file is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def check_model(local: LocalModel) -> None:
    """Read the headers of all files that a load needs: it would find a fault only after half a minute, in a traceback.
    Raise YiTuneError for the first that is wrong.
    """
    path, name = local.path, local.model.name
    remedy = _("Copy {path} anew from where it came from.").format(path=path)
    if local.model.huggingface:
        remedy = _("Fetch it: yi-tune download {name}{where}").format(
            name=name, where=workspace_option(path.parents[1])
        )
    if not local.downloaded:
        raise YiTuneError(_("{name} is not downloaded (looked in {path}).").format(name=name, path=path), remedy)
    check_architecture(path, str(path), remedy)
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise YiTuneError(_("{path} has no tokenizer (tokenizer.json or tokenizer.model).").format(path=path), remedy)
    file = path / INDEX
    try:
        shards = {"model.safetensors"}
        if file.is_file():
            shards = set(map(str, json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        for file in sorted(path / shard for shard in shards):
            read_header(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise YiTuneError(
            "The weights are not whole: {file} is missing, broken or cut short ({error}).",
            "Delete that file, if it is there. {remedy}",
            file=file,
            error=error,
            remedy=remedy,
        ) from None
