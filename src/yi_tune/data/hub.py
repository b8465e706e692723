"""Datasets of a hub: the files of one split come to `datasets/` in the workspace, and stay at their commit."""

import shutil
from dataclasses import dataclass
from functools import partial
from gettext import gettext as _
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.hubs import Hub, HuggingFace, hubs_of
from yi_tune.hubs.download import Get, at_work, bring, finish, from_hubs
from yi_tune.language import english
from yi_tune.models import Model, Origin, read_origin
from yi_tune.output import err

# What rows are read from.
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
# What may tell which files make a split.
_TOLD = ("README.md", ".huggingface.yaml", "dataset_infos.json")

_DESCRIBE = english("Name `subset`, `folder` or `split` of an entry in a dataset_info.json: --data NAME --data-dir DIR")
_CONVERT = english("Convert it to JSON lines yourself, and name that file.")
# The commits of datasets, by where these lie in the workspace.
Commits = dict[str, str | None]


def _listed(folder: Path, origin: Origin) -> list[Path]:
    """The files of rows among those of a folder."""
    return [folder / file for file in origin.files if file not in _TOLD]


@dataclass(frozen=True)
class Hosted:
    """A split of a dataset on one hub or both, by LLaMA-Factory's names; `subset` None is the only one or the default,
    `revision` None the hub's default branch.
    """

    huggingface: str | None
    modelscope: str | None
    split: str = "train"
    subset: str | None = None
    folder: str | None = None
    revision: str | None = None

    def fetch(self, workspace: Path, pinned: Commits) -> tuple[list[Path], Commits]:
        """Its files in order, and the commit that they are of by the place where they lie in the workspace.

        No hub is asked for what is here, unless it is at another commit than that place is `pinned` to. Raises
        YiTuneError when no hub gives it, or its files are not rows.
        """
        name = self.huggingface or self.modelscope or ""
        hubs = hubs_of(Model(name, name, huggingface=self.huggingface, modelscope=self.modelscope), None, "dataset")
        hubs = [hub for hub in hubs if self._place(hub) in pinned] or hubs
        with at_work(workspace / self._place(hubs[0]), err) as terminal:

            def found(hub: Hub) -> tuple[list[Path], Commits] | None:
                place = self._place(hub)
                folder, origin = workspace / place, read_origin(workspace / place)
                if not origin or not origin.whole(folder) or pinned.get(place, origin.commit) != origin.commit:
                    return None
                terminal.print(
                    _("Rows of {what} at commit {commit}: {place}").format(
                        what=hub.wanted, commit=origin.commit, place=place
                    )
                )
                return _listed(folder, origin), {place: origin.commit}

            def fetch(hub: Hub) -> tuple[list[Path], Commits]:
                place, repository = self._place(hub), hub.origin.repository
                # ModelScope gives files by branch only.
                revision = (pinned.get(place) if isinstance(hub, HuggingFace) else None) or self.revision
                at = type(hub)(repository, revision, "dataset")
                origin = bring(at, workspace / place, terminal, partial(self._files, repository))
                finish(origin, workspace / place)
                return _listed(workspace / place, origin), {place: origin.commit}

            here = next(filter(None, map(found, hubs)), None)
            return here or from_hubs(_("The dataset {name}").format(name=name), hubs, fetch, workspace, terminal)

    def _place(self, hub: Hub) -> str:
        chosen = {key: getattr(self, key) for key in ("split", "subset", "folder", "revision")}
        last = ",".join(f"{key}={quote(value, safe='')}" for key, value in chosen.items() if value)
        return f"datasets/{hub.name}/{hub.origin.repository}/{last}"

    def _files(self, name: str, names: list[str], get: Get) -> list[str]:
        """Those of the files of the repository `name` that make the split, as `datasets` tells by their names and the
        repository's own words. It is shown empty files of these names.
        """
        from datasets import load_dataset_builder

        with TemporaryDirectory() as place:
            root = Path(place).resolve() / name.split("/")[-1]  # a script of that name would be the loader
            for file in names:
                if (root / file).resolve().is_relative_to(root):
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    (root / file).touch()
            for file in _TOLD:
                if file in names:
                    shutil.copy(get(file), root / file)
            try:
                builder = load_dataset_builder(str(root), name=self.subset, data_dir=self.folder, cache_dir=place)
                splits = {str(split): files for split, files in builder.config.data_files.items()}
            except Exception as error:  # of several kinds
                reason = " ".join(str(error).replace(str(root), name).split())
                raise YiTuneError(
                    _("The dataset {name} cannot be used: {reason}").format(name=name, reason=reason),
                    _CONVERT if "script" in reason else _DESCRIBE,
                ) from None
            if self.split not in splits:
                known = did_you_mean(self.split, sorted(splits))
                raise YiTuneError(
                    _("The dataset {name} has no split {split!r}.").format(name=name, split=self.split),
                    f"{known} {_(_DESCRIBE)}",
                )
            files = [Path(file).relative_to(root).as_posix() for file in splits[self.split]]
        if unread := [file for file in files if not file.lower().endswith(ENDINGS)]:
            raise YiTuneError(
                _("The dataset {name} is in {file}, which is none of {endings}.").format(
                    name=name, file=unread[0], endings=", ".join(ENDINGS)
                ),
                _CONVERT,
            )
        return files
