"""Fetches a model from a hub, through the hub's own client."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.console import Console

from yi_tune.errors import YiTuneError
from yi_tune.models import LocalModel, check_model

Source = Literal["auto", "huggingface", "modelscope"]

# Weights in one format only, and no code.
_WANTED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "*.jinja",
]


def download(local: LocalModel, source: Source, console: Console) -> None:
    """Fetch `local` into its folder; what is there already is not fetched again.

    With "auto" Hugging Face is asked first, then ModelScope. Raises YiTuneError when neither gives a
    whole model; why is on `console`.
    """
    if local.model.huggingface is None:
        return check_model(local)
    fetchers = {"huggingface": _from_huggingface, "modelscope": _from_modelscope}
    for hub, fetch in fetchers.items():
        repository = getattr(local.model, hub)
        if source not in ("auto", hub) or repository is None:
            continue
        console.print(f"Downloading {repository} from {hub} ...", markup=False)
        try:
            _fetch(fetch, repository, local.path)
        except YiTuneError as error:
            console.print(f"{hub} did not give it: {error.message}", markup=False, soft_wrap=True)
        else:
            return check_model(local)
    raise YiTuneError(
        f"{local.model.name} could not be downloaded.",
        "Check the network, or try the other hub: --source modelscope, or a mirror: HF_ENDPOINT=https://...",
    )


def _fetch(fetch: Callable[[str, Path], object], repository: str, folder: Path) -> None:
    try:
        fetch(repository, folder)
    except Exception as error:  # the clients share no exception: HTTP, connection, disk, their own
        first, *_ = [*str(error).strip().splitlines(), type(error).__name__]
        raise YiTuneError(first) from error


def _from_huggingface(repository: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(repository, local_dir=folder, allow_patterns=_WANTED)


def _from_modelscope(repository: str, folder: Path) -> None:
    from modelscope import snapshot_download

    snapshot_download(repository, local_dir=str(folder), allow_patterns=_WANTED)
