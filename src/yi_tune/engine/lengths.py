"""How long the rows are, as LLaMA-Factory encodes them."""

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer

from yi_tune.config import Config
from yi_tune.identity import Message


def token_lengths(conversations: list[list[Message]], config: Config) -> list[int]:
    """Tokens of each conversation, before any cutoff; `config` names the model and the template."""
    tokenizer = AutoTokenizer.from_pretrained(config["model_name_or_path"], use_fast=True, split_special_tokens=False)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=config.get("template")))
    lengths = []
    for messages in conversations:
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages[1:] if system is not None else messages
        pairs = template.encode_multiturn(tokenizer, turns, system)
        lengths.append(sum(len(source) + len(target) for source, target in pairs))
    return lengths
