"""Whether transformers loads a tokenizer that gives the ids a model was trained on, and if not, what does."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from yi_tune.errors import YiTuneError
from yi_tune.models import TOKENIZER

# A turn of each role, in both languages, with what tokenizers differ about: a space after a control
# token, digits, line ends.
_CONVERSATION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n你是谁？ 1+1=2<|im_end|>\n"
    "<|im_start|>assistant\n我是Yi，由零一万物开发。\n\n I am Yi.<|im_end|>\n"
)
_CONTROL = ("<|im_start|>", "<|im_end|>")
# What has been seen to help, in the order in which they are tried. The second makes transformers build the
# tokenizer from the SentencePiece model where a tokenizer.json made by an older version is at fault.
_CORRECTIONS: tuple[dict[str, Any], ...] = (
    {"add_prefix_space": False},
    {"add_prefix_space": False, "tokenizer_class": "LlamaTokenizer"},
)


def trained_ids(model: Path) -> list[int] | None:
    """The ids that the SentencePiece model in the file `model` gives; None when it does not know ChatML."""
    pieces = SentencePieceProcessor(model_file=str(model))
    control = {token: pieces.piece_to_id(token) for token in _CONTROL}
    if pieces.unk_id() in control.values():
        return None
    ids: list[int] = []
    for text in re.split(f"({'|'.join(map(re.escape, _CONTROL))})", _CONVERSATION):
        ids += [control[text]] if text in control else pieces.encode(text)
    return ids


def loaded_ids(folder: Path) -> list[int]:
    """The ids that transformers gives, which loads the tokenizer in `folder` as LLaMA-Factory has it do."""
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, split_special_tokens=False, padding_side="right")
    return list(tokenizer.encode(_CONVERSATION, add_special_tokens=False))


def correction(folder: Path) -> dict[str, Any]:
    """The entries of tokenizer_config.json with which transformers gives the ids of `folder`'s tokenizer.model.

    None are needed when it does so already, or there is nothing to compare with. Raises YiTuneError when it does not,
    and no known correction helps.
    """
    expected = trained_ids(folder / "tokenizer.model")
    if expected is None or loaded_ids(folder) == expected:
        return {}
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for change in _CORRECTIONS:
        with tempfile.TemporaryDirectory() as name:
            trial = Path(name)
            for file in filter(Path.is_file, map(folder.joinpath, ("config.json", *TOKENIZER))):
                shutil.copy(file, trial)
            (trial / "tokenizer_config.json").write_text(json.dumps(config | change), encoding="utf-8")
            if loaded_ids(trial) == expected:
                return change
    raise YiTuneError(
        "transformers gives this tokenizer other ids than the model was trained on. yi-tune knows no correction."
    )
