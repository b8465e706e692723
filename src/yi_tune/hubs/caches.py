"""A model in Hugging Face's or ModelScope's own cache: used where it lies, by a folder of links to it."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from yi_tune.errors import YiTuneError
from yi_tune.hubs.hub import hubs_of
from yi_tune.models import FileOrigin, LocalModel, Model, Origin, check_model, needed_files, sha256

# Bytes of a file that is hashed at once: all but the weights.
_SMALL = 20_000_000


@dataclass(frozen=True)
class Copy:
    """A model in a hub's cache, at `commit` where the cache tells."""

    source: str
    repository: str
    folder: Path

    @property
    def commit(self) -> str | None:
        return self.folder.name if re.fullmatch(r"[0-9a-f]{40}", self.folder.name) else None


def cached(model: Model, revision: str | None = None) -> Copy | None:
    """A whole copy of the model in one of the caches: all files are there and the headers of the weights fit.

    Nothing is asked of a hub, and nothing hashed: that is for `--verify`.
    """
    for hub in hubs_of(model.huggingface, model.modelscope, revision):
        for folder in hub.cached():
            try:
                check_model(LocalModel(Model(model.name, model.folder), folder))
            except YiTuneError:
                continue
            return Copy(f"{hub.title}'s cache", hub.repository, folder)
    return None


def link_cached(model: Model, revision: str | None, folder: Path) -> Origin | None:
    """Make `folder` one of links to the copy in a cache, if there is one; returns its record, not yet written."""
    copy = cached(model, revision)
    if copy is None:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {}
    for name in needed_files((path.name for path in copy.folder.iterdir() if path.is_file()), copy.repository):
        file = copy.folder / name
        (folder / name).symlink_to(file)
        # Hugging Face's cache names the content of a large file by its sha256; ModelScope's says nothing.
        blob = file.resolve().name
        known = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None
        size = file.stat().st_size
        files[name] = FileOrigin(size, sha256(file) if known is None and size < _SMALL else known)
    return Origin(copy.source, copy.repository, revision, copy.commit, files)
