"""Gives a model folder the tokenizer that the model was trained with."""

import json
from dataclasses import replace
from gettext import gettext as _
from pathlib import Path
from typing import Any

from rich.console import Console
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, LlamaTokenizer

from yi_tune.language import english
from yi_tune.models import FileOrigin, Origin, sha256

CONFIG = "tokenizer_config.json"
ORIGINAL = "tokenizer_config.original.json"
# A turn of each role, in both languages, with what tokenizers differ about: a space after a control
# token, digits, line ends.
_CONVERSATION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n你是谁？ 1+1=2<|im_end|>\n"
    "<|im_start|>assistant\n我是Yi，由零一万物开发。\n\n I am Yi.<|im_end|>\n"
)
_WRONG = english("transformers gives this tokenizer other ids than the model was trained on.")
# The class makes transformers build the tokenizer from the SentencePiece model, not from an old tokenizer.json.
_CORRECTION = {"add_prefix_space": False, "tokenizer_class": "LlamaTokenizer"}


def correct_tokenizer(folder: Path, origin: Origin, console: Console) -> Origin:
    """Correct tokenizer_config.json where that is needed, and keep the hub's beside it; returns the record of both."""
    if not (change := correction(folder, console)):
        return origin
    why = f"{CONFIG}: {json.dumps(change)}. As published, {_WRONG}"
    config = folder / CONFIG
    content = json.loads(config.read_text(encoding="utf-8")) | change
    config.replace(folder / ORIGINAL)
    config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    said = _("Tokenizer corrected. {config}: {change}. As published, {wrong} The hub's is kept as {original}.")
    console.print(said.format(config=CONFIG, change=json.dumps(change), wrong=_(_WRONG), original=ORIGINAL))
    own = FileOrigin(config.stat().st_size, sha256(config))
    return replace(origin, files=origin.files | {ORIGINAL: origin.files[CONFIG], CONFIG: own}, corrected=why)


def warn_of_tokenizer(folder: Path, console: Console) -> None:
    """For a folder of the user's own, in which nothing is changed: say if its tokenizer ought to be corrected."""
    if change := correction(folder, console):
        console.print(
            _("Warning: {wrong} Put into {file}: {change}").format(
                wrong=_(_WRONG), file=folder / CONFIG, change=json.dumps(change)
            )
        )


def correction(folder: Path, console: Console) -> dict[str, Any]:
    """The entries of tokenizer_config.json with which transformers gives the ids of `folder`'s tokenizer.model.

    None are needed when it does so already, or that has no ChatML; where none are known, it is said.
    """
    if not all((folder / name).is_file() for name in ("tokenizer.model", CONFIG)):
        return {}
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    trained = pieces.encode(_CONVERSATION)
    if pieces.piece_to_id("<|im_start|>") == pieces.unk_id() or _loaded_ids(AutoTokenizer, folder) == trained:
        return {}
    if _loaded_ids(LlamaTokenizer, folder, add_prefix_space=False) == trained:
        return _CORRECTION
    console.print(_("Warning: {wrong} yi-tune knows no correction.").format(wrong=_(_WRONG)))
    return {}


def _loaded_ids(kind: Any, folder: Path, **options: Any) -> list[int]:
    """The ids that transformers gives, which loads the tokenizer in `folder` as LLaMA-Factory has it do."""
    tokenizer = kind.from_pretrained(folder, use_fast=True, split_special_tokens=False, padding_side="right", **options)
    return list(tokenizer.encode(_CONVERSATION, add_special_tokens=False))
