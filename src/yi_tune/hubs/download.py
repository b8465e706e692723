"""Brings a model onto this machine, whole or not at all.

It is fetched into `models/NAME.part/`, verified, given its record (origin.py), and only then renamed to
`models/NAME/`. Broken off anywhere, the next call goes on in the same `.part`.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal

from yi_tune.errors import YiTuneError
from yi_tune.hubs.caches import cached, link_cached
from yi_tune.hubs.hub import Hub, HubError, Listing, RemoteFile, hubs_of
from yi_tune.hubs.origin import wrong_files
from yi_tune.hubs.tokenizer import correct_tokenizer
from yi_tune.models import (
    FileOrigin,
    LocalModel,
    Model,
    Origin,
    check_architecture,
    check_model,
    check_path,
    needed_files,
    read_origin,
    sha256,
)
from yi_tune.output import engine_output_to, log_folder
from yi_tune.progress import Transfer

Source = Literal["auto", "huggingface", "modelscope"]


def download(
    local: LocalModel, source: Source, console: Console, *, revision: str | None = None, verify: bool = False
) -> None:
    """See to it that `local` is whole in its folder; nothing is asked of a hub where it is already.

    A copy in a hub's cache is linked to. With `verify` the files that are there are hashed anew, and the
    wrong ones replaced. Raises YiTuneError when no hub of `source` gives a whole model, or it is none for yi-tune.
    """
    check_path(local.path)
    if local.model.huggingface is None:  # nano, or a folder of the user's own
        return check_model(local)
    if _here(local, revision) and not verify:
        return None
    with _lock(local.path, console), engine_output_to(log_folder() / "download.log") as terminal:
        if local.path.exists() and not local.owns(read_origin(local.path)):
            raise YiTuneError(
                f"{local.path} exists, and is no download of {local.model.name}.",
                f"Use it as it is, with --model {local.path}, or move it away.",
            )
        if origin := _here(local, revision):
            if not verify or not _set_aside_wrong(local, origin, terminal):
                return None
        elif local.path.exists() and not local.downloaded:  # it has lost files
            _set_aside(local)
        elif _from_cache(local, revision, terminal):
            return None
        return _from_hubs(local, source, revision, terminal)


def use_cached(local: LocalModel, console: Console) -> None:
    """For a command that only needs the model: link to a copy in a hub's cache if the model is not here."""
    if local.downloaded or local.path.exists() or cached(local.model) is None:
        return
    with _lock(local.path, console), engine_output_to(log_folder() / "download.log") as terminal:
        if not local.downloaded:
            _from_cache(local, None, terminal)


def _from_cache(local: LocalModel, revision: str | None, console: Console) -> bool:
    """Link to a copy in a hub's cache; returns whether there was one."""
    links = local.path.with_name(f"{local.path.name}.links")
    origin = link_cached(local.model, revision, links)
    if origin is None:
        return False
    console.print(f"Found in {origin.source}; it is used where it lies.", markup=False)
    _finish(links, local.path, origin, console)
    return True


def _here(local: LocalModel, revision: str | None) -> Origin | None:
    """The record of what is here, if that is the model, whole and at this revision."""
    origin = read_origin(local.path)
    wanted = origin is not None and revision in (None, origin.revision, origin.commit)
    return origin if wanted and local.downloaded else None


@contextmanager
def _lock(path: Path, console: Console) -> Iterator[None]:
    """One process at a time works on a model; the others wait, and then find it there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print(f"Another process is fetching {path.name}. Waiting for it.", markup=False)
            lock.acquire()
    except OSError as error:
        raise YiTuneError(
            f"{path.parent} cannot be written: {error.strerror}.", "Choose another: --workspace DIR"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def _from_hubs(local: LocalModel, source: Source, revision: str | None, console: Console) -> None:
    """Fetch it from the first hub that gives all of it."""
    hubs = hubs_of(local.model.huggingface, local.model.modelscope, revision)
    hubs = [hub for hub in hubs if source in ("auto", hub.name)]
    failures: dict[str, HubError] = {}
    for hub in hubs:
        try:
            origin = _from_hub(hub, local, revision, console)
        except HubError as error:
            failures[hub.title] = error
            if hub is not hubs[-1]:
                console.print(f"{hub.title} did not give it: {error.message}", markup=False, soft_wrap=True)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise YiTuneError(
                f"The disk of {local.path.parent} is full.",
                "Free some space, then type the same command: it goes on where it stopped.",
            ) from error
        else:
            return _finish(_part(local.path), local.path, origin, console)
    reasons = " ".join(f"{title}: {error.message}" for title, error in failures.items())
    hints = list(dict.fromkeys(error.hint for error in failures.values() if error.hint))
    if source != "auto":
        hints.append(f"Or try the other hub: --source {'modelscope' if source == 'huggingface' else 'huggingface'}")
    raise YiTuneError(f"{local.model.name} could not be downloaded. {reasons}", "\n".join(hints))


def _from_hub(hub: Hub, local: LocalModel, revision: str | None, console: Console) -> Origin:
    """Bring the `.part` folder to where it holds the model and nothing else; returns its record."""
    console.print(f"Asking {hub.title} for {hub.repository} ...", markup=False)
    listing = hub.listing()
    files = _wanted(listing, hub.repository)
    part = _part(local.path)
    total = sum(file.size for file in files)
    _check_disk(part, total)
    part.mkdir(exist_ok=True)
    console.print(f"Downloading {len(files)} files, {decimal(total)}, to {local.path}", markup=False, soft_wrap=True)
    with Transfer(console, "Downloading", total) as transfer:
        # What it is, before the weights are fetched.
        digests = _complete(hub, listing, [file for file in files if file.name == "config.json"], part, transfer)
        try:
            check_architecture(part, hub.repository, "Choose another model.")
        except YiTuneError:
            shutil.rmtree(part)
            raise
        digests |= _complete(hub, listing, [file for file in files if file.name not in digests], part, transfer)
    for path in part.iterdir():
        if path.name not in digests:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        check_model(LocalModel(Model(local.model.name, local.model.folder), part))
    except YiTuneError as error:
        raise HubError(f"what it has there is no whole model. {error.message}") from error
    sizes = {file.name: FileOrigin(file.size, digests[file.name]) for file in files}
    return Origin(hub.name, hub.repository, revision, listing.commit, sizes)


def _wanted(listing: Listing, repository: str) -> list[RemoteFile]:
    """The files to fetch, the small ones first. Raises HubError when the list reaches out of the model's folder."""
    for file in listing.files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts or "\\" in file.name:
            raise HubError(f"it lists a file outside of the model ({file.name!r}). Nothing was fetched.")
    needed = needed_files((file.name for file in listing.files), repository)
    return sorted((file for file in listing.files if file.name in needed), key=lambda file: (file.size, file.name))


def _check_disk(part: Path, total: int) -> None:
    """Raise YiTuneError when what is still to be fetched does not fit."""
    missing = total - sum(path.stat().st_size for path in part.glob("*") if path.is_file())
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise YiTuneError(
            f"{decimal(missing)} are still to be fetched, and {part.parent} has {decimal(free)} free.",
            "Free some space, or choose another place: --workspace DIR",
        )


def _complete(hub: Hub, listing: Listing, files: list[RemoteFile], folder: Path, transfer: Transfer) -> dict[str, str]:
    """Fetch those of `files` that a call before has not brought; returns sha256 by name."""
    digests = {}
    for file in files:
        path = folder / file.name
        if path.is_file() and path.stat().st_size == file.size and sha256(path, transfer.at) == file.sha256:
            digests[file.name] = file.sha256
        else:
            path.unlink(missing_ok=True)
    return digests | hub.fetch(listing, [file for file in files if file.name not in digests], folder, transfer)


def _finish(folder: Path, target: Path, origin: Origin, console: Console) -> None:
    """Correct the tokenizer, write the record, and put the folder in its place: there it is a model."""
    correct_tokenizer(folder, origin, console).write(folder)
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():  # another revision
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(_part(target), ignore_errors=True)


def _set_aside_wrong(local: LocalModel, origin: Origin, console: Console) -> bool:
    """Hash what is here. If any of it is wrong, make it a broken-off download without these files, and say so."""
    origin = _with_checksums(local, origin, console)
    with Transfer(console, "Checking", sum(entry.size for entry in origin.files.values())) as transfer:
        wrong = wrong_files(local.path, origin, transfer.at)
    if not wrong:
        check_model(local)
        if (origin := correct_tokenizer(local.path, origin, console)) != read_origin(local.path):
            origin.write(local.path)
        return False
    _set_aside(local)
    for name, what in wrong.items():
        console.print(f"{name} {what}. Fetching it again.", markup=False, soft_wrap=True)
        (_part(local.path) / name).unlink(missing_ok=True)
    return True


def _set_aside(local: LocalModel) -> None:
    """Make what is here a broken-off download, so that no file that is right is fetched again."""
    shutil.rmtree(_part(local.path), ignore_errors=True)
    local.path.rename(_part(local.path))


def _with_checksums(local: LocalModel, origin: Origin, console: Console) -> Origin:
    """The record, with the checksums that a cache did not have, if the hub tells them."""
    if all(entry.sha256 for entry in origin.files.values()):
        return origin
    for hub in hubs_of(local.model.huggingface, local.model.modelscope, origin.revision):
        if hub.repository == origin.repository:
            try:
                known = {file.name: FileOrigin(file.size, file.sha256) for file in hub.listing().files}
            except HubError as error:
                console.print(
                    f"Weights are not hashed, only their headers read: the cache has no checksums of them, and "
                    f"{hub.title} does not tell them ({error.message})",
                    markup=False,
                    soft_wrap=True,
                )
            else:
                unknown = {
                    name: known[name] for name, entry in origin.files.items() if not entry.sha256 and name in known
                }
                return replace(origin, files=origin.files | unknown)
    return origin
