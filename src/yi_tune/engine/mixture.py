"""All of a run's rows in tokens, as LLaMA-Factory's `tokenized_path` holds them; own rows packed if that is planned."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset as Table
from datasets import DatasetDict, concatenate_datasets, load_from_disk
from datasets import Sequence as ListOf
from llamafactory.data.processor.processor_utils import greedy_knapsack

from yi_tune.config import Config
from yi_tune.data.dataset import Dataset
from yi_tune.data.own import OwnData
from yi_tune.engine.tokens import encode_dataset

# Rows that are packed with each other; LLaMA-Factory's own number.
_BATCH = 1000
# LLaMA-Factory's collator fills a sequence up to a multiple of this.
_MULTIPLE = 8


def packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which rows go together: their indices, pack by pack, of at most `capacity` tokens each."""
    rows: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows.setdefault(length, []).append(row)
    return [[rows[length].pop() for length in pack] for pack in greedy_knapsack(list(lengths), capacity)]


def count_packs(lengths: Sequence[int], capacity: int) -> int:
    """How many packs a dataset of rows of these lengths comes to."""
    return sum(len(packs(lengths[start : start + _BATCH], capacity)) for start in range(0, len(lengths), _BATCH))


def write_mixture(datasets: Sequence[Dataset], own: OwnData, config: Config, folder: Path) -> None:
    """Write the rows of `datasets`, of which `own` is tokenised already, into a new folder.

    The rows held out for validation are those that LLaMA-Factory would hold out, and are not packed.
    """
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        cache = Path(name)
        tables: list[Table] = []
        where_own = range(0)
        for dataset in datasets:
            table = load_from_disk(own.tokens) if dataset.name == "own" else encode_dataset(dataset, config, cache)
            if (most := config.get("max_samples")) is not None:
                table = table.select(range(min(most, len(table))))
            if dataset.name == "own":
                before = sum(len(table) for table in tables)
                where_own = range(before, before + len(table))
            tables.append(table)
        rows = concatenate_datasets(tables).remove_columns("length")
        train, validation = _split(len(rows), config)
        if config.get("neat_packing"):
            alone = rows.select([row for row in train if row not in where_own])
            own_rows = rows.select([row for row in train if row in where_own])
            capacity = config.get("cutoff_len", 2048)
            parts = [
                _map(alone, lambda batch: _packed(batch, [[row] for row in range(len(batch["labels"]))]), cache / "1"),
                _map(own_rows, lambda batch: _packed(batch, packs(_lengths(batch), capacity)), cache / "2"),
            ]
            mixed = {"train": concatenate_datasets(parts)}
        else:
            mixed = {"train": rows.select(train)}
        if validation:
            mixed["validation"] = rows.select(validation)
        DatasetDict(mixed).save_to_disk(folder)


def _split(rows: int, config: Config) -> tuple[list[int], list[int]]:
    """Which rows are trained on, and which are held out: as LLaMA-Factory's split_dataset has it."""
    size = config.get("val_size", 0.0)
    if size <= 1e-6:
        return list(range(rows)), []
    numbered = Table.from_dict({"row": range(rows)})
    split = numbered.train_test_split(test_size=int(size) if size > 1 else size, seed=config.get("seed", 42))
    return list(split["train"]["row"]), list(split["test"]["row"])


def _lengths(batch: dict[str, list[Any]]) -> list[int]:
    return [len(labels) for labels in batch["labels"]]


def _packed(batch: dict[str, list[Any]], together: list[list[int]]) -> dict[str, list[Any]]:
    """The rows of a batch in packs. `attention_mask` numbers the rows of a pack, as the collator's block-diagonal
    mask wants it, and positions begin anew with each.
    """
    packed: dict[str, list[Any]] = {"input_ids": [], "labels": [], "attention_mask": [], "position_ids": []}
    for pack in together:
        lengths = [len(batch["labels"][row]) for row in pack]
        for column in ("input_ids", "labels"):
            packed[column].append([token for row in pack for token in batch[column][row]])
        packed["attention_mask"].append([number for number, length in enumerate(lengths, 1) for _ in range(length)])
        positions = [position for length in lengths for position in range(length)]
        # Of a batch of one, the collator fills up all but this column.
        packed["position_ids"].append(positions + [0] * (-len(positions) % _MULTIPLE))
    return packed


def _map(rows: Table, function: Any, cache: Path) -> Table:
    if not len(rows):
        return rows
    whole = rows.features["labels"].feature
    features = rows.features.copy()
    features |= {"attention_mask": ListOf(whole), "position_ids": ListOf(whole)}
    return rows.map(
        function,
        batched=True,
        batch_size=_BATCH,
        features=features,
        cache_file_name=f"{cache}.arrow",
        load_from_cache_file=False,
    )
