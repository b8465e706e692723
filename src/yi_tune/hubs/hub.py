"""What a download asks of a hub; huggingface.py and modelscope.py give it, through the hubs' own clients."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yi_tune.errors import YiTuneError
from yi_tune.progress import Transfer

# Seconds that a hub has for its first answer.
PATIENCE = 5
# Files that are fetched at a time.
WORKERS = 4


class HubError(YiTuneError):
    """A hub did not give what it was asked for; another one may."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a hub: size in bytes and sha256, or where the hub tells none, its object id in git (a sha1)."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None = None


@dataclass(frozen=True)
class Listing:
    """All files of a repository at a commit."""

    commit: str | None
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """A repository, at a revision (None: the hub's default), on one of the hubs."""

    name: str
    title: str
    repository: str

    @property
    def endpoint(self) -> str:
        """The address that is asked: the hub's own, or a mirror's."""

    def cached(self) -> list[Path]:
        """The folders in the hub's own cache that may hold it; asks nobody."""

    def listing(self) -> Listing:
        """Ask which files there are. Raises HubError, within seconds where nobody answers."""

    def fetch(self, listing: Listing, files: Sequence[RemoteFile], folder: Path, transfer: Transfer) -> dict[str, str]:
        """Fetch `files` into `folder`, each under its name only once it is whole and has its checksum.

        Goes on with the `.incomplete` files of a call that was broken off. Returns their sha256 by name.
        Raises HubError for a file that comes damaged twice or not at all, OSError when it cannot be written.
        """


def hubs_of(huggingface: str | None, modelscope: str | None, revision: str | None) -> list[Hub]:
    """A model's repositories, in the order to ask: a hub whose variable points elsewhere is the one that is meant."""
    from yi_tune.hubs.huggingface import HuggingFace
    from yi_tune.hubs.modelscope import ModelScope

    hubs: list[Hub] = []
    if huggingface is not None:
        hubs.append(HuggingFace(huggingface, revision))
    if modelscope is not None:
        hubs.append(ModelScope(modelscope, revision))
    if not os.environ.get("HF_ENDPOINT") and any(map(os.environ.get, ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"))):
        hubs.reverse()
    return hubs


def refused(what: str, status: int | None, login: str) -> HubError:
    """What an HTTP status means for the user who wants `what`; `login` is how to show the hub a token."""
    if status == 401:
        return HubError(f"it wants a login for {what}, or there is no such model.", f"Log in with a token: {login}")
    if status == 403:
        return HubError(
            f"{what} is gated, and this account has no access.",
            f"Ask for access on the model's page, then log in with a token: {login}",
        )
    if status == 404:
        return HubError(f"there is no {what}.", "Look for the exact id and revision on the hub's page.")
    if status == 429:
        return HubError("it says too many requests (HTTP 429).", f"Wait some minutes, or log in with a token: {login}")
    return HubError(f"it fails (HTTP {status}) when asked for {what}.", "Try again later.")


def mirror(variable: str) -> str:
    """What to do about a hub that is not there."""
    return f"Check the network, or use a mirror: {variable}=https://your.mirror yi-tune download"
