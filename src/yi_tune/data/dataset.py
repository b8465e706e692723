"""Named sets of conversations that a run trains on, written as LLaMA-Factory reads them."""

import hashlib
import io
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

    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines."""
        content = self.content
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content.encode()) as lines:
            yield from lines

    @cached_property
    def file_name(self) -> str:
        """A file name that tells this content from any other: run.json records it."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line)
        return f"{self.name}-{digest.hexdigest()[:12]}.jsonl"

    def conversations(self) -> Iterator[list[Message]]:
        """The conversations, one at a time."""
        return (json.loads(line)["messages"] for line in self.lines())


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
        info[dataset.name] = {"file_name": dataset.file_name, **form}
        with (folder / dataset.file_name).open("wb") as file:
            file.writelines(dataset.lines())
    # LLaMA-Factory reads this file in the locale's encoding.
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="ascii")
