"""Gives a model folder the tokenizer that the model was trained with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from yi_tune.errors import YiTuneError
from yi_tune.models import FileOrigin, Origin, sha256
from yi_tune.progress import Progress

CONFIG = "tokenizer_config.json"
ORIGINAL = "tokenizer_config.original.json"


def correct_tokenizer(folder: Path, origin: Origin, console: Console) -> Origin:
    """Compare the ids that transformers gives a ChatML conversation with those of the model's SentencePiece model.

    Where they differ the folder gets a corrected tokenizer_config.json, and the hub's is kept beside it.
    Returns the record with both. A model that has only a tokenizer.json is left alone.
    """
    with Progress(console) as progress:
        progress.stage("Looking at the tokenizer")
        change = _change(folder, console)
    if not change:
        return origin
    why = (
        f"{CONFIG}: {json.dumps(change)}. As published, transformers puts a token for a stray space after every "
        "control token, and takes other tokens than the model was trained on."
    )
    config, original = folder / CONFIG, origin.files.get(ORIGINAL, origin.files[CONFIG])
    content = json.loads(config.read_text(encoding="utf-8")) | change
    if ORIGINAL not in origin.files:
        config.replace(folder / ORIGINAL)
    config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"Tokenizer corrected. {why} The hub's is kept as {ORIGINAL}.")
    own = FileOrigin(config.stat().st_size, sha256(config))
    return replace(origin, files=origin.files | {ORIGINAL: original, CONFIG: own}, corrected=why)


def warn_of_tokenizer(folder: Path, console: Console) -> None:
    """For a folder of the user's own, in which nothing is changed: say if its tokenizer ought to be corrected."""
    if change := _change(folder, console):
        console.print(
            "Warning: transformers gives this tokenizer other ids than the model was trained on. "
            f"Put into {folder / CONFIG}: {json.dumps(change)}"
        )


def _change(folder: Path, console: Console) -> dict[str, Any]:
    """What to change in the tokenizer's configuration; where that is not known, the user is warned."""
    if not all((folder / name).is_file() for name in ("tokenizer.model", CONFIG)):
        return {}
    from yi_tune.engine.tokenizer import correction

    try:
        return correction(folder)
    except YiTuneError as error:
        console.print(f"Warning: {error.message}")
        return {}
