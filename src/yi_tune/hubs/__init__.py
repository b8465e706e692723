"""The hubs that models come from and exports go to, each through its own client."""

import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from gettext import gettext as _
from pathlib import Path
from typing import Any

from rich.console import Console

from yi_tune.errors import YiTuneError
from yi_tune.hubs.proxies import check_proxies, proxy_to
from yi_tune.language import english
from yi_tune.models import NEEDED, FileOrigin, Model, Origin

# Seconds that a hub has for its first answer.
PATIENCE = 5

# The clients read these when they are imported. Hugging Face's first asks the hub something else, for up to 3 s;
# ModelScope's makes a dead hub a minute's wait, by 4 tries of 15 s.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS", str(PATIENCE))
os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")


class HubError(YiTuneError):
    """A hub did not give what it was asked for; another one may."""


class _Repository:
    """A repository of a `kind`, "model" or "dataset", on a hub, at a revision (None: the hub's default).

    `variable` is the environment variable that names a mirror, `login` tells how to show the hub a token.
    """

    name = title = variable = login = ""

    def __init__(self, repository: str, revision: str | None, kind: str = "model") -> None:
        self.origin, self.kind = Origin(self.name, repository, revision, None), kind
        named = repository if kind == "model" else _("dataset {repository}").format(repository=repository)
        self.wanted = (
            named if revision is None else _("{named} at revision {revision!r}").format(named=named, revision=revision)
        )


class HuggingFace(_Repository):
    """A repository on Hugging Face, or on the mirror that HF_ENDPOINT names."""

    name, title, variable = "huggingface", "Hugging Face", "HF_ENDPOINT"
    login = english("Log in with a token: HF_TOKEN=..., or once: hf auth login")

    @property
    def endpoint(self) -> str:
        """The address that is asked: the hub's own, or a mirror's."""
        from huggingface_hub import constants

        return constants.ENDPOINT

    def cached(self) -> list[Path]:
        """The folders in the hub's own cache that may hold it; asks nobody."""
        from huggingface_hub import snapshot_download

        repository, revision, files = self.origin.repository, self.origin.revision, list(NEEDED)
        try:
            copy = snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=files)
        except (OSError, ValueError):  # there is none, or this is no name of a repository
            return []
        return [Path(copy)]

    def listing(self) -> Origin:
        """Its commit and all its files. A checksum may be "git " and an object id: see `fetch.right`."""
        from huggingface_hub import HfApi

        # With a time limit: snapshot_download waits for ever on a hub that accepts a connection and never answers.
        api, repository, revision = HfApi(self.endpoint), self.origin.repository, self.origin.revision
        ask = api.dataset_info if self.kind == "dataset" else api.model_info
        info = ask(repository, revision=revision, files_metadata=True, timeout=PATIENCE)
        files = {}
        for file in info.siblings or []:
            checksum = file.lfs.sha256 if file.lfs else file.blob_id and f"git {file.blob_id}"
            files[file.rfilename] = FileOrigin(file.size or 0, checksum)
        return replace(self.origin, commit=info.sha, files=files)

    def request(self, name: str, commit: str | None) -> tuple[str, dict[str, str]]:
        """The URL of a file, and the headers to ask for it with."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        repository, kind = self.origin.repository, self.kind
        url = hf_hub_url(repository, name, repo_type=kind, revision=commit, endpoint=self.endpoint)
        return url, build_hf_headers()

    def token(self) -> str | None:
        """The user's token, if there is one."""
        from huggingface_hub import get_token

        return get_token()

    def make(self, *, public: bool) -> str:
        """See to it that the repository is there, and return its page. One that is there keeps its visibility."""
        from huggingface_hub import HfApi

        return str(HfApi(self.endpoint).create_repo(self.origin.repository, private=not public, exist_ok=True))

    def upload(self, folder: Path) -> None:
        """Upload what is in `folder`. What the hub has already is not sent again; other files there stay."""
        from huggingface_hub import HfApi

        repository, message = self.origin.repository, "yi-tune export"
        HfApi(self.endpoint).upload_folder(repo_id=repository, folder_path=folder, commit_message=message)


class ModelScope(_Repository):
    """A repository on ModelScope, or on the site that MODELSCOPE_ENDPOINT or MODELSCOPE_DOMAIN names."""

    name, title, variable = "modelscope", "ModelScope", "MODELSCOPE_ENDPOINT"
    login = english("Log in with a token: MODELSCOPE_API_TOKEN=..., or once: modelscope login")

    @property
    def endpoint(self) -> str:
        from modelscope_hub.config import get_default_config

        return str(get_default_config().endpoint)

    def cached(self) -> list[Path]:
        from modelscope_hub import HubApi
        from modelscope_hub.config import get_default_config
        from modelscope_hub.errors import CacheNotFound

        repository, revision = self.origin.repository, self.origin.revision
        # Clients up to 2025 kept no revisions. They wrote into `hub` unless MODELSCOPE_CACHE was set, for a while in
        # 2024 then too, and into `models` of either from 2025 on; those of 2023 left dots as they are.
        cache, names = get_default_config().cache_dir, (repository.replace(".", "___"), repository)
        old = [cache / within / name for within in ("models", "hub/models", "hub", "") for name in names]
        try:
            new = [HubApi().download_repo(repository, "model", revision=revision, local_files_only=True)]
        except CacheNotFound:
            new = []
        if revision:
            return [copy for copy in new if copy not in old]
        return [copy for copy in dict.fromkeys([*new, *old]) if copy.is_dir()]

    def listing(self) -> Origin:
        from modelscope_hub import HubApi

        repository, revision = self.origin.repository, self.origin.revision or "master"
        listed: list[dict[str, Any]] = HubApi().legacy.list_repo_files(repository, self.kind, revision=revision)
        entries = [entry for entry in listed if entry.get("Type") != "tree"]
        # The list tells each file's last commit; the newest of them is where the branch stands.
        newest = max(entries, key=lambda entry: entry.get("CommittedDate") or 0).get("Revision")
        files = {entry["Path"]: FileOrigin(int(entry["Size"]), entry.get("Sha256") or None) for entry in entries}
        return replace(self.origin, commit=newest, files=files)

    def request(self, name: str, commit: str | None) -> tuple[str, dict[str, str]]:
        from modelscope_hub import HubApi
        from modelscope_hub.utils import build_user_agent

        client = HubApi().legacy
        headers = {"User-Agent": build_user_agent()}
        if client.token:  # as the client shows it to the hub's newer and older services
            headers |= {"Authorization": f"Bearer {client.token}", "Cookie": f"m_session_id={client.token}"}
        # By branch: it is not documented that a file can be asked for by its commit.
        revision = self.origin.revision or "master"
        return client.get_download_url(self.origin.repository, self.kind, name, revision), headers

    def token(self) -> str | None:
        from modelscope_hub import HubApi

        return HubApi().legacy.token

    def make(self, *, public: bool) -> str:
        from modelscope_hub import HubApi

        api, repository = HubApi(), self.origin.repository
        if not api.repo_exists(repository, "model"):
            api.create_repo(repository, "model", visibility="public" if public else "private")
        return f"{self.endpoint}/models/{repository}"

    def upload(self, folder: Path) -> None:
        from modelscope_hub import HubApi

        # Its own record of what is uploaded would lie in the folder, and be a file that is none of the export's.
        message = "yi-tune export"
        HubApi().upload_folder(self.origin.repository, "model", folder, commit_message=message, use_cache=False)


Hub = HuggingFace | ModelScope


def check_way(hub: Hub) -> None:
    """Raise YiTuneError, before anything is asked, for an address of the hub, or a proxy, that cannot be."""
    if not re.fullmatch(r"https?://(\S+@)?(\[[\da-fA-F:]+\]|[^:/@\s]+)(:\d+)?(/\S*)?", hub.endpoint):
        reason = _("{variable} names no address of a site: {address!r}.").format(
            variable=hub.variable, address=hub.endpoint
        )
        raise YiTuneError(
            reason, _("Write it with https:// before the host: {variable}=https://HOST").format(variable=hub.variable)
        )
    check_proxies()


def explain(hub: Hub, error: Exception, what: str) -> HubError:
    """What a failure of a hub's client means for the user who wants `what`."""
    # An HTTP status is in the error itself, as ModelScope's client has it, or in its response.
    status = getattr(getattr(error, "response", error), "status_code", None)
    words, login = " ".join(str(error).split())[:300], _(hub.login)
    unreached = (
        _("{site} cannot be reached or gives no whole answer ({said})."),
        _("Check the network, or name a mirror: {mirror}"),
    )
    if variable := proxy_to(hub.endpoint):
        unreached = (
            _("{site} cannot be reached or gives no whole answer by way of the proxy that {variable} names ({said})."),
            _("Check the network and that proxy (or unset {variable}), or name a mirror: {mirror}"),
        )
    told = {
        None: unreached,
        407: unreached,  # the proxy's own: it wants a login
        401: (_("it wants a login for {what}, or does not know this token, or has no such {kind}."), login),
        403: (_("{what} is gated, or private: this account has no access."), _("Ask for it on its page. {login}")),
        404: (_("there is no {what}."), _("Look for the exact id and revision on the hub's page.")),
        429: (_("it says too many requests (HTTP 429)."), _("Wait some minutes, or log in. {login}")),
    }
    failed = (_("it fails (HTTP {status}) when asked for {what}: {words}"), _("Try again later."))
    message, hint = told.get(status, failed)
    cause: BaseException = error
    while under := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
        cause = under  # ModelScope's client puts one error into the other, and each into its text
    said, mirror = f"{type(cause).__name__}: {cause}", f"{hub.variable}=https://your.mirror"
    values = {"site": hub.endpoint, "said": said, "mirror": mirror, "variable": variable, "status": status}
    values |= {"what": what, "login": login, "words": words}
    values["kind"] = _("dataset") if hub.kind == "dataset" else _("model")
    return HubError(message.format(**values), hint.format(**values))


def hubs_of(model: Model, revision: str | None, kind: str = "model") -> list[Hub]:
    """Its repositories, in the order to ask: a hub whose variable points elsewhere is the one that is meant."""
    hubs: list[Hub] = [HuggingFace(model.huggingface, revision, kind)] if model.huggingface else []
    hubs += [ModelScope(model.modelscope, revision, kind)] if model.modelscope else []
    if not os.environ.get("HF_ENDPOINT") and any(map(os.environ.get, ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"))):
        hubs.reverse()
    return hubs


def to_push(name: str, repository: str) -> Hub:
    """The repository to push to on the hub `name`. Raises YiTuneError for one that cannot be, when there is no token,
    or no way to the hub: before anything is exported.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    hub = HuggingFace(repository, None) if name == HuggingFace.name else ModelScope(repository, None)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository, re.ASCII):
        raise YiTuneError("--push {repository!r} is no repository.", "Write it as OWNER/NAME.", repository=repository)
    if isinstance(hub, HuggingFace):
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise YiTuneError(
                "--push {repository!r} is no name for {hub}: {error}",
                "Choose another.",
                repository=repository,
                hub=hub.title,
                error=error,
            ) from None
    check_way(hub)
    if hub.token() is None:
        raise YiTuneError(
            _("{hub} takes uploads only with a token, and there is none.").format(hub=hub.title), hub.login
        )
    return hub


def make(hub: Hub, *, public: bool) -> str:
    """See to it that the repository is there, by a token that may write to it; returns its page. YiTuneError if not."""
    try:
        return hub.make(public=public)
    except Exception as error:
        reason = explain(hub, error, hub.wanted)
        raise YiTuneError(
            _("{hub} makes no {what}: {message}").format(hub=hub.title, what=hub.wanted, message=reason.message),
            reason.hint,
        ) from error


def push(hub: Hub, folder: Path, console: Console) -> None:
    """Upload `folder` to the repository. Raises YiTuneError when that fails."""
    console.print(_("Uploading to {what} on {hub} ...").format(what=hub.wanted, hub=hub.title))
    try:
        with redirect_stdout(sys.stderr):  # ModelScope's client prints a table
            hub.upload(folder)
    except Exception as error:
        reason = explain(hub, error, hub.wanted)
        again = _("The export is in {folder}. The same command again uploads what is missing.").format(folder=folder)
        raise YiTuneError(
            _("The upload failed: {message}").format(message=reason.message), f"{reason.hint}\n{again}"
        ) from error
