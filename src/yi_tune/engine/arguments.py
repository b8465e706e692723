"""Which keys LLaMA-Factory's training takes, and what it says of a config."""

import types
import typing
from dataclasses import fields

from llamafactory.hparams import (
    DataArguments,
    FinetuningArguments,
    GeneratingArguments,
    ModelArguments,
    TrainingArguments,
)

_SIMPLE = (bool, int, float, str)


def known_keys() -> dict[str, tuple[type, ...]]:
    """Every key of a training config with the types of its values; () where more than plain types fit."""
    known: dict[str, tuple[type, ...]] = {}
    for group in (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments):
        hints = typing.get_type_hints(group)
        for field in fields(group):
            if field.init:
                hint = hints[field.name]
                union = typing.get_origin(hint) in (typing.Union, types.UnionType)
                kinds = typing.get_args(hint) if union else (hint,)
                plain = all(kind in (*_SIMPLE, types.NoneType) for kind in kinds)
                known[field.name] = tuple(kinds) if plain else ()
    return known
