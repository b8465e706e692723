"""Brings a model onto this machine, whole or not at all.

It is fetched into `models/NAME.part/`, verified, given its record (download.json), and only then renamed to
`models/NAME/`. When a download breaks off, the next call goes on in the same `.part`.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from gettext import gettext as _
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.filesize import decimal

from yi_tune.errors import YiTuneError
from yi_tune.files import check_room, disk_full, hold, is_held, put_in_place
from yi_tune.hubs import Hub, HubError, check_way, explain, hubs_of
from yi_tune.hubs.fetch import Fetcher, right, size_of
from yi_tune.models import FileOrigin, LocalModel, Model, Origin, check_path, read_origin
from yi_tune.output import engine_output_to, log_folder
from yi_tune.weights import check_architecture, check_model, needed_files

T = TypeVar("T")
# Fetches a file of a repository, and says where it lies.
Get = Callable[[str], Path]


def download(
    local: LocalModel, source: str, console: Console, *, revision: str | None = None, verify: bool = False
) -> None:
    """See to it that `local` is whole in its folder; nothing is asked of a hub where it is already, or in a cache.

    `source` is a hub's name or "auto". With `verify` the files that are there are hashed, and the wrong ones replaced.
    Raises YiTuneError when no hub gives a whole model, or one for yi-tune.
    """
    check_path(local.path)
    if local.model.huggingface is None:  # nano, or a folder of the user's own
        return check_model(local)
    with at_work(local.path, console) as terminal:
        origin = read_origin(local.path)
        if local.path.exists() and not local.owns(origin):
            raise YiTuneError(
                "{path} exists, and is no download of {model}.",
                "Use it as it is, with --model {path}, or move it away.",
                path=local.path,
                model=local.model.name,
            )
        revision = revision or (origin.revision if origin else None)
        if origin and local.downloaded and revision in (origin.revision, origin.commit):
            if not verify or _is_right(local.path, origin, terminal):
                return None
        elif _link(local, revision, terminal):
            return None
        hubs = hubs_of(local.model, revision)

        def fetch(hub: Hub) -> None:
            _finish(local, bring(hub, local.path, terminal, choose, first, check), terminal)

        def choose(names: list[str], _get: Get) -> list[str]:
            return needed_files(names, local.model.name)

        def first(get: Get) -> None:  # before the weights are fetched
            check_architecture(get("config.json").parent, local.model.name, _("Choose another model."))

        def check(part: Path) -> None:
            try:
                check_model(LocalModel(Model(local.model.name, local.model.folder), part))
            except YiTuneError as error:
                raise HubError("what it has there is no whole model. {said}", said=error.message) from error

        wanted = [hub for hub in hubs if source in ("auto", hub.name)]
        return from_hubs(local.model.name, wanted, fetch, local.path.parent, terminal)


def use_cached(local: LocalModel, console: Console) -> None:
    """For a command that only needs the model: link to a copy in a hub's cache if the model is not here."""
    if not local.path.exists() and cached(local.model):
        with at_work(local.path, console) as terminal:
            if not local.path.exists():  # another process may have made it meanwhile
                _link(local, None, terminal)


def cached(model: Model, revision: str | None = None) -> tuple[Path, Origin] | None:
    """A whole copy of the model in one of the hubs' caches, and where it came from; no hub is asked."""
    for hub in hubs_of(model, revision):
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
    part = _part(local.path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    files = {}
    for name in needed_files((path.name for path in copy.iterdir() if path.is_file()), origin.repository):
        (part / name).symlink_to(copy / name)
        # Hugging Face's cache names the content of a large file by its sha256; ModelScope's says nothing.
        blob = (copy / name).resolve().name
        files[name] = FileOrigin((copy / name).stat().st_size, blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None)
    console.print(_("Found in {source}; it is used where it lies.").format(source=origin.source))
    _finish(local, replace(origin, files=files), console)
    return True


def _is_right(folder: Path, origin: Origin, console: Console) -> bool:
    """Hash what is here. What is wrong is deleted; where a cache has no checksums, the hub's list is to tell."""
    console.print(
        _("Checking {count} files, {size} ...").format(count=len(origin.files), size=decimal(size_of(folder)))
    )
    wrong = [name for name, file in origin.files.items() if not right(folder / name, file)]
    for name in wrong:
        console.print(_("Damaged, to be fetched again: {name}").format(name=name))
        (folder / name).unlink()
    return not wrong and all(file.sha256 for file in origin.files.values())


@contextmanager
def at_work(folder: Path, console: Console) -> Iterator[Console]:
    """One process at a time works on what comes into a folder; the others wait, and then find it there."""
    lock = folder.with_name(f".{folder.name}.lock")
    busy = _("Another process is fetching {name}.").format(name=folder.name)
    if is_held(lock):
        console.print(_("{busy} Waiting for it.").format(busy=busy))
    with hold(lock, YiTuneError(busy), patience=-1), engine_output_to(log_folder() / "download.log") as terminal:
        yield terminal


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def from_hubs(name: str, hubs: list[Hub], fetch: Callable[[Hub], T], folder: Path, console: Console) -> T:
    """Fetch `name` from the first hub that gives all of it, onto the disk of `folder`. Raises YiTuneError when none
    does, or none can be asked.
    """
    failures: dict[str, HubError] = {}
    for hub in hubs:
        check_way(hub)
    for hub in hubs:
        try:
            return fetch(hub)
        except HubError as error:
            failures[hub.title] = error
            if hub is not hubs[-1]:
                console.print(_("{hub} did not give it: {message}").format(hub=hub.title, message=error.message))
        except OSError as error:
            raise (disk_full(error, folder) or error) from error.__cause__
    reasons = " ".join(f"{title}: {error.message}" for title, error in failures.items())
    hints = [error.hint for error in failures.values() if error.hint]
    raise YiTuneError(
        _("{name} could not be downloaded. {reasons}").format(name=name, reasons=reasons),
        "\n".join(dict.fromkeys(hints)),
    )


def bring(
    hub: Hub,
    folder: Path,
    console: Console,
    choose: Callable[[list[str], Get], list[str]],
    first: Callable[[Get], None] = lambda _: None,
    check: Callable[[Path], None] = lambda _: None,
) -> Origin:
    """Bring the `.part` of a folder to where it holds what is wanted of the repository and nothing else; returns its
    record. `choose` is given the names of all files, and says which are wanted; `first` looks at some when there is
    room for all, and `check` at all. Each may raise YiTuneError.
    """
    console.print(_("Asking {hub} for {what} ...").format(hub=hub.title, what=hub.wanted))
    try:
        listing = hub.listing()
    except Exception as error:
        raise explain(hub, error, hub.wanted) from error
    part = _part(folder)
    if folder.exists() and not part.exists():
        # Incomplete, or at another revision. What is right in it is not fetched again, and until then it stays usable.
        shutil.copytree(folder, part, symlinks=True, copy_function=os.link)
    part.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(hub, listing.commit, part, console)
    got: dict[str, FileOrigin] = {}

    def get(name: str) -> Path:
        got[name] = fetcher.fetch(name, listing.files[name])
        return part / name

    files = {name: listing.files[name] for name in choose(list(listing.files), get)} | got
    total = sum(file.size for file in files.values())
    check_room(part.parent, total - size_of(part))
    console.print(
        _("Downloading {count} files, {total}, to {folder}").format(
            count=len(files), total=decimal(total), folder=folder
        )
    )
    first(get)
    fetched = fetcher.fetch_all(files)
    for path in part.rglob("*"):
        if path.relative_to(part).as_posix() not in files and not path.is_dir():
            path.unlink()
    check(part)
    return replace(listing, files={name: fetched[name] for name in files})


def _finish(local: LocalModel, origin: Origin, console: Console) -> None:
    """Correct the tokenizer in `.part`, and finish it: there it is a model."""
    part = _part(local.path)
    if (part / "tokenizer.model").is_file():
        console.print(_("Looking at the tokenizer ..."))
        from yi_tune.engine.tokenizer import correct_tokenizer

        origin = correct_tokenizer(part, origin, console)
    finish(origin, local.path)


def finish(origin: Origin, folder: Path) -> None:
    """Write the record in a folder's `.part`, and put that in its place."""
    origin.write(_part(folder))
    put_in_place(_part(folder), folder)
