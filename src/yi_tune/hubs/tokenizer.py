"""Gives a model folder the tokenizer that the model was trained with."""

import json
from dataclasses import replace
from pathlib import Path

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
    if not all((folder / name).is_file() for name in ("tokenizer.model", CONFIG)):
        return origin
    try:
        with Progress(console) as progress:
            progress.stage("Looking at the tokenizer")
            from yi_tune.engine.tokenizer import corrected_config

            corrected = corrected_config(folder)
    except YiTuneError as error:
        console.print(f"Warning: {error.message} yi-tune knows no correction.", soft_wrap=True)
        return origin
    if corrected is None:
        return origin
    config, changes = corrected
    why = (
        f"{CONFIG}: {', '.join(changes)}. As published, transformers puts a token for a stray space after every "
        "control token, and takes other tokens than the model was trained on."
    )
    if ORIGINAL not in origin.files:
        (folder / CONFIG).replace(folder / ORIGINAL)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"Tokenizer corrected. {why} The hub's is kept as {ORIGINAL}.", markup=False, soft_wrap=True)
    own = FileOrigin((folder / CONFIG).stat().st_size, sha256(folder / CONFIG))
    original = origin.files.get(ORIGINAL, origin.files[CONFIG])
    return replace(origin, files=origin.files | {ORIGINAL: original, CONFIG: own}, corrected=why)


def warn_of_tokenizer(folder: Path, console: Console) -> None:
    """For a folder of the user's own, in which nothing is changed: say if its tokenizer ought to be corrected."""
    if not all((folder / name).is_file() for name in ("tokenizer.model", CONFIG)):
        return
    from yi_tune.engine.tokenizer import corrected_config

    try:
        corrected = corrected_config(folder)
    except YiTuneError as error:
        console.print(f"Warning: {error.message}", soft_wrap=True)
    else:
        if corrected is not None:
            console.print(
                f"Warning: transformers gives this tokenizer other ids than the model was trained on. "
                f"Put into {folder / CONFIG}: {', '.join(corrected[1])}",
                markup=False,
                soft_wrap=True,
            )
