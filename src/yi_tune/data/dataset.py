"""Named sets of conversations that a run trains on, written as LLaMA-Factory reads them."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from yi_tune.data.identity import Message

# In the order in which they are trained on: the rows rendered for a name, the user's own, the base's own answers.
NAMES = ("identity", "own", "replay")


@dataclass(frozen=True)
class Dataset:
    """Conversations under a name: `content` is JSON lines, or the file that holds them, of `{"messages": [...]}`."""

    name: str
    rows: int
    content: str | Path

    @cached_property
    def file_name(self) -> str:
        """A file name that tells this content from any other: run.json records it."""
        if isinstance(self.content, Path):
            with self.content.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        else:
            digest = hashlib.sha256(self.content.encode())
        return f"{self.name}-{digest.hexdigest()[:12]}.jsonl"

    def conversations(self) -> Iterator[list[Message]]:
        """The conversations, one at a time."""
        if isinstance(self.content, Path):
            with self.content.open(encoding="utf-8", newline="\n") as lines:
                yield from (json.loads(line)["messages"] for line in lines)
        else:
            yield from (json.loads(line)["messages"] for line in self.content.split("\n") if line)


def dataset_of(name: str, conversations: list[list[Message]]) -> Dataset:
    """The conversations as the dataset `name`."""
    lines = (json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in conversations)
    return Dataset(name, len(conversations), "".join(lines))


def write_datasets(datasets: Iterable[Dataset], folder: Path, *, resumed: bool = False) -> None:
    """Write each dataset, and the `dataset_info.json` that lists them, into `folder`.

    LLaMA-Factory keeps own rows in tokens there. A run that is `resumed` from a checkpoint takes them as they are;
    without a checkpoint they may be half written, and are made anew.
    """
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tags = {f"{role}_tag": role for role in ("role", "content", "user", "assistant", "system")}
    form = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    info = {}
    for dataset in datasets:
        if isinstance(dataset.content, Path):
            shutil.copyfile(dataset.content, folder / dataset.file_name)
        else:
            (folder / dataset.file_name).write_text(dataset.content, encoding="utf-8")
        info[dataset.name] = {"file_name": dataset.file_name, **form}
    # LLaMA-Factory reads this file in the locale's encoding.
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="ascii")
