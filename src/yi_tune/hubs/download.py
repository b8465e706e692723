"""Brings a model onto this machine, whole or not at all.

It is fetched into `models/NAME.part/`, verified, given its record (download.json), and only then renamed to
`models/NAME/`. When a download breaks off, the next call goes on in the same `.part`.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from yi_tune.errors import YiTuneError
from yi_tune.files import disk_full, hold, is_disk_full, is_held, put_in_place
from yi_tune.hubs import Hub, HubError, hubs_of
from yi_tune.hubs.fetch import Fetcher, right, size_of
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


def download(
    local: LocalModel, source: str, console: Console, *, revision: str | None = None, verify: bool = False
) -> None:
    """See to it that `local` is whole in its folder; nothing is asked of a hub where it is already.

    `source` is a hub's name or "auto". A copy in a hub's cache is linked to. With `verify` the files that are there are
    hashed, and the wrong ones replaced. Raises YiTuneError when no hub gives a whole model, or one for yi-tune.
    """
    check_path(local.path)
    if local.model.huggingface is None:  # nano, or a folder of the user's own
        return check_model(local)
    if _here(local, revision) and not verify:
        return None
    with _at_work(local, console) as terminal:
        if local.path.exists() and not local.owns(read_origin(local.path)):
            raise YiTuneError(
                f"{local.path} exists, and is no download of {local.model.name}.",
                f"Use it as it is, with --model {local.path}, or move it away.",
            )
        if origin := _here(local, revision):
            if not verify or _verify(local, origin, terminal):
                return None
        elif local.path.exists() and not local.downloaded:  # it has lost files
            _set_aside(local, [])
        elif _link(local, revision, terminal):
            return None
        hubs = hubs_of(local.model.huggingface, local.model.modelscope, revision)
        return from_hubs(local, [hub for hub in hubs if source in ("auto", hub.name)], terminal)


def use_cached(local: LocalModel, console: Console) -> None:
    """For a command that only needs the model: link to a copy in a hub's cache if the model is not here."""
    if local.downloaded or local.path.exists() or cached(local.model) is None:
        return
    with _at_work(local, console) as terminal:
        if not local.downloaded:
            _link(local, None, terminal)


def cached(model: Model, revision: str | None = None) -> tuple[Path, Origin] | None:
    """A whole copy of the model in one of the hubs' caches, and where it came from.

    All files are there and the headers of the weights fit. Nothing is asked of a hub, and nothing hashed.
    """
    for hub in hubs_of(model.huggingface, model.modelscope, revision):
        for folder in hub.cached():
            try:
                check_model(LocalModel(Model(model.name, model.folder), folder))
            except YiTuneError:
                continue
            commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
            return folder, replace(hub.origin, source=f"{hub.title}'s cache", commit=commit)
    return None


def _link(local: LocalModel, revision: str | None, console: Console) -> bool:
    """Make the model a folder of links to a copy in a hub's cache; returns whether there was one."""
    found = cached(local.model, revision)
    if found is None:
        return False
    copy, origin = found
    links = local.path.with_name(f"{local.path.name}.links")
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    files = {}
    for name in needed_files((path.name for path in copy.iterdir() if path.is_file()), origin.repository):
        (links / name).symlink_to(copy / name)
        # Hugging Face's cache names the content of a large file by its sha256; ModelScope's says nothing.
        blob, small = (copy / name).resolve().name, not name.endswith(".safetensors")
        digest = blob if re.fullmatch(r"[0-9a-f]{64}", blob) else sha256(copy / name) if small else None
        files[name] = FileOrigin((copy / name).stat().st_size, digest)
    console.print(f"Found in {origin.source}; it is used where it lies.")
    _finish(links, local.path, replace(origin, files=files), console)
    return True


def _here(local: LocalModel, revision: str | None) -> Origin | None:
    """The record of what is here, if that is the model, whole and at this revision."""
    origin = read_origin(local.path)
    wanted = origin is not None and revision in (None, origin.revision, origin.commit)
    return origin if wanted and local.downloaded else None


@contextmanager
def _at_work(local: LocalModel, console: Console) -> Iterator[Console]:
    """One process at a time works on a model; the others wait, and then find it there."""
    lock = local.path.with_name(f".{local.path.name}.lock")
    busy = f"Another process is fetching {local.path.name}."
    if is_held(lock):
        console.print(f"{busy} Waiting for it.")
    with hold(lock, YiTuneError(busy), patience=-1), engine_output_to(log_folder() / "download.log") as terminal:
        yield terminal


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def from_hubs(local: LocalModel, hubs: list[Hub], console: Console) -> None:
    """Fetch it from the first hub that gives all of it. Raises YiTuneError when none does."""
    failures: dict[str, HubError] = {}
    for hub in hubs:
        try:
            return _finish(_part(local.path), local.path, _from_hub(hub, local, console), console)
        except HubError as error:
            failures[hub.title] = error
            if hub is not hubs[-1]:
                console.print(f"{hub.title} did not give it: {error.message}")
        except OSError as error:
            if is_disk_full(error, local.path.parent):
                raise disk_full(local.path.parent) from error
            raise
    reasons = " ".join(f"{title}: {error.message}" for title, error in failures.items())
    hints = [error.hint for error in failures.values() if error.hint]
    if len(hubs) == 1:
        hints.append(f"Or try the other hub: --source {'modelscope' if 'Hugging Face' in failures else 'huggingface'}")
    raise YiTuneError(f"{local.model.name} could not be downloaded. {reasons}", "\n".join(dict.fromkeys(hints)))


def _from_hub(hub: Hub, local: LocalModel, console: Console) -> Origin:
    """Bring the `.part` folder to where it holds the model and nothing else; returns its record."""
    console.print(f"Asking {hub.title} for {hub.wanted} ...")
    listing = hub.listing()
    files = _needed(listing)
    total = sum(file.size for file in files.values())
    part = _part(local.path)
    part.mkdir(exist_ok=True)
    missing, free = total - size_of(part), shutil.disk_usage(part).free
    if missing > free:
        raise YiTuneError(
            f"{decimal(missing)} are still to be fetched, and the disk of {part.parent} has {decimal(free)} free.",
            "Free some space, or choose another place: --workspace DIR",
        )
    console.print(f"Downloading {len(files)} files, {decimal(total)}, to {local.path}")
    fetcher = Fetcher(hub, listing.commit, part, console)
    config = fetcher.fetch("config.json", files.pop("config.json"))
    try:
        check_architecture(part, hub.wanted, "Choose another model.")  # before the weights are fetched
    except YiTuneError:
        shutil.rmtree(part)
        raise
    files = {"config.json": config} | fetcher.fetch_all(files, total)
    for path in part.iterdir():
        if path.name not in files:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        check_model(LocalModel(Model(local.model.name, local.model.folder), part))
    except YiTuneError as error:
        raise HubError(f"what it has there is no whole model. {error.message}") from error
    return replace(listing, files=files)


def _needed(listing: Origin) -> dict[str, FileOrigin]:
    """The files to fetch, the small ones first. Raises HubError when the list reaches out of the model's folder."""
    for name in listing.files:
        if re.search(r"^/|\\|(^|/)\.\.(/|$)", name):
            raise HubError(f"it lists a file outside of the model ({name!r}). Nothing was fetched.")
    names = needed_files(listing.files, listing.repository)
    return {name: listing.files[name] for name in sorted(names, key=lambda name: listing.files[name].size)}


def _finish(folder: Path, target: Path, origin: Origin, console: Console) -> None:
    """Correct the tokenizer, write the record, and put the folder in its place: there it is a model."""
    correct_tokenizer(folder, origin, console).write(folder)
    put_in_place(folder, target)
    shutil.rmtree(_part(target), ignore_errors=True)


def _set_aside(local: LocalModel, wrong: list[str]) -> None:
    """Make what is here, but for the wrong files, a broken-off download: what is right is not fetched again."""
    shutil.rmtree(_part(local.path), ignore_errors=True)
    local.path.rename(_part(local.path))
    for name in wrong:
        (_part(local.path) / name).unlink(missing_ok=True)


def _verify(local: LocalModel, origin: Origin, console: Console) -> bool:
    """Hash what is here; returns whether it is right. If not, or where a cache has no checksums, what may be right is
    set aside: the hub's list then tells.
    """
    total = sum(file.size for file in origin.files.values())
    console.print(f"Checking {len(origin.files)} files, {decimal(total)} ...")
    wrong = [name for name, file in origin.files.items() if not right(local.path / name, file)]
    if not wrong and None not in [file.sha256 for file in origin.files.values()]:
        check_model(local)
        return True
    if wrong:
        console.print(f"Damaged or missing, to be fetched again: {', '.join(wrong)}")
    _set_aside(local, wrong)
    return False
