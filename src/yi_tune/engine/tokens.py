"""Conversations in tokens, by LLaMA-Factory's own template."""

from collections.abc import Iterable
from typing import Any

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer

from yi_tune.config import Config
from yi_tune.identity import Message


def load_template(config: Config) -> tuple[Any, Any]:
    """The tokenizer of the config's model, and the chat template that LLaMA-Factory trains it with."""
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=config["model_name_or_path"]))["tokenizer"]
    arguments = DataArguments(template=config["template"], default_system=config.get("default_system"))
    return tokenizer, get_template_and_fix_tokenizer(tokenizer, arguments)


def token_lengths(conversations: Iterable[list[Message]], config: Config) -> list[int]:
    """How many tokens each conversation has in training, were `cutoff_len` not to cut it.

    Of the config `model_name_or_path`, `template` and `default_system` are looked at.
    """
    tokenizer, template = load_template(config)
    lengths = []
    for messages in conversations:
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages[1:] if system is not None else messages
        pairs = template.encode_multiturn(tokenizer, turns, system, None)
        lengths.append(sum(len(source) + len(target) for source, target in pairs))
    return lengths
