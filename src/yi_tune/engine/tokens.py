"""Conversations in tokens, by LLaMA-Factory's own template and processor."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset as Table
from datasets import Features, Sequence, Value, load_dataset, load_from_disk
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer

from yi_tune.config import Config
from yi_tune.data.dataset import Dataset
from yi_tune.data.identity import Message
from yi_tune.data.own import TOKEN_KEYS

# `length` counts a row's tokens before cutoff_len cut it.
_TOKENS = Features(
    {"input_ids": Sequence(Value("int32")), "labels": Sequence(Value("int32")), "length": Value("int32")}
)
_MESSAGES = Features({"messages": [{"role": Value("string"), "content": Value("string")}]})
# Rows that a process takes at a time; with fewer than that, a second process starts later than the first has finished.
_BATCH = 1000


class Encoder:
    """From conversations to what the model is trained on, as LLaMA-Factory makes it for the config."""

    def __init__(self, config: Config) -> None:
        self._arguments = DataArguments(**{key: config[key] for key in TOKEN_KEYS if key in config})
        self._tokenizer = load_tokenizer(ModelArguments(model_name_or_path=config["model_name_or_path"]))["tokenizer"]
        self._template = get_template_and_fix_tokenizer(self._tokenizer, self._arguments)
        self._processor = SupervisedDatasetProcessor(self._template, self._tokenizer, None, self._arguments)

    def length(self, messages: list[Message]) -> int:
        """How many tokens a conversation has, uncut."""
        system, turns = _split(messages)
        pairs = self._template.encode_multiturn(self._tokenizer, turns, system, None)
        return sum(len(source) + len(target) for source, target in pairs)

    def encode(self, batch: dict[str, list[list[Message]]]) -> dict[str, list[Any]]:
        """`input_ids` and `labels`, cut to cutoff_len, and the uncut `length`, of a batch of `messages`."""
        conversations = batch["messages"]
        split = [_split(messages) for messages in conversations]
        nothing = [None] * len(split)
        rows = self._processor.preprocess_dataset(
            {
                "_prompt": [turns[:-1] for _, turns in split],
                "_response": [turns[-1:] for _, turns in split],
                "_system": [system for system, _ in split],
                **dict.fromkeys(("_tools", "_images", "_videos", "_audios"), nothing),
            }
        )
        lengths = [
            len(ids) if len(ids) < self._arguments.cutoff_len else self.length(messages)
            for ids, messages in zip(rows["input_ids"], conversations, strict=True)
        ]
        return {"input_ids": rows["input_ids"], "labels": rows["labels"], "length": lengths}


def _split(messages: list[Message]) -> tuple[str | None, list[Message]]:
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def token_lengths(conversations: Iterable[list[Message]], config: Config) -> list[int]:
    """How many tokens each conversation has in training, were `cutoff_len` not to cut it."""
    encoder = Encoder(config)
    return [encoder.length(messages) for messages in conversations]


def encode_dataset(dataset: Dataset, config: Config, cache: Path) -> Table:
    """The tokens of a dataset's rows, made by as many processes as there are cores where that pays.

    Between, they lie in the folder `cache`, and not in memory.
    """
    source = dataset.content
    if isinstance(source, str):
        (cache / dataset.file_name).write_text(source, encoding="utf-8")
        source = cache / dataset.file_name
    rows = load_dataset("json", data_files=str(source), split="train", features=_MESSAGES, cache_dir=str(cache))
    workers = min(len(os.sched_getaffinity(0)), -(-dataset.rows // _BATCH))
    encoded = rows.map(
        Encoder(config).encode,
        batched=True,
        batch_size=_BATCH,
        num_proc=workers if workers > 1 else None,
        remove_columns=["messages"],
        features=_TOKENS,
        cache_file_name=str(cache / f"{dataset.name}.arrow"),
        load_from_cache_file=False,
    )
    return encoded


def write_tokens(dataset: Dataset, folder: Path, config: Config) -> None:
    """Write the tokens of a dataset into a new folder."""
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        encode_dataset(dataset, config, Path(cache)).save_to_disk(folder)


def read_lengths(folder: Path) -> list[int]:
    """The uncut lengths of the rows that `write_tokens` wrote."""
    return list(load_from_disk(folder)["length"])
