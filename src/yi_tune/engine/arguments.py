"""Which keys LLaMA-Factory's training takes, and what it says of a config."""

import enum
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from llamafactory.hparams import (
    DataArguments,
    FinetuningArguments,
    GeneratingArguments,
    ModelArguments,
    TrainingArguments,
)

_SIMPLE = (bool, int, float, str)


def _keys() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every key of a training config, and the types that it may have."""
    for group in (ModelArguments, DataArguments, TrainingArguments, FinetuningArguments, GeneratingArguments):
        hints = typing.get_type_hints(group)
        for field in fields(group):
            if field.init:
                hint = hints[field.name]
                union = typing.get_origin(hint) in (typing.Union, types.UnionType)
                yield field.name, typing.get_args(hint) if union else (hint,)


def known_keys() -> dict[str, tuple[type, ...]]:
    """Every key of a training config with the types of its values; () where more than plain types fit."""
    return {key: kinds if all(kind in (*_SIMPLE, types.NoneType) for kind in kinds) else () for key, kinds in _keys()}


def choices() -> dict[str, tuple[str, ...]]:
    """The keys that take one of a few words, and these."""
    found: dict[str, tuple[str, ...]] = {}
    for key, kinds in _keys():
        enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]
        if enums:  # a str beside it is how the word may be written
            found[key] = tuple(member.value for kind in enums for member in kind)
        elif typing.get_origin(kinds[0]) is typing.Literal and set(kinds[1:]) <= {types.NoneType}:
            found[key] = typing.get_args(kinds[0])
    return found
