"""Hugging Face's HTTP interface, as far as huggingface_hub uses it for a download."""

import re
from typing import Any

from tests.hubs.server import Handler, Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# The same files at another commit.
OLDER = "fedcba9876543210fedcba9876543210fedcba98"


class HuggingFace(Hub):
    """Model info, the tree, and files by /resolve/, of which the large ones redirect to the CDN."""

    repository = "01-ai/Yi-1.5-6B-Chat"
    token_variable = "HF_TOKEN"  # noqa: S105

    def revision(self, name: str) -> str | None:
        """The commit that a revision stands for."""
        return {"main": COMMIT, COMMIT: COMMIT, "v1": OLDER, OLDER: OLDER}.get(name)

    def answer(self, request: Handler) -> None:
        info = re.fullmatch(rf"/api/models/{re.escape(self.repository)}(?:/(revision|tree)/([^/]+))?", request.route)
        resolve = re.fullmatch(rf"/{re.escape(self.repository)}/resolve/([^/]+)/(.+)", request.route)
        if info is not None:
            self._api(request, kind=info[1], revision=info[2] or "main")
        elif resolve is not None:
            self._resolve(request, revision=resolve[1], name=resolve[2])
        elif request.route.startswith(("/api/models/", "/api/resolve-cache/")):
            request.error(404, {"X-Error-Code": "RepoNotFound"})
        elif request.route == "/api/agent-harnesses":
            # Asked for by every process until it has an answer.
            request.json({"standardEnvVars": [], "harnesses": {}})
        else:
            request.error(404)

    def _api(self, request: Handler, *, kind: str | None, revision: str) -> None:
        commit = self.revision(revision)
        if commit is None:
            request.error(404, {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            request.json([self._entry(name) for name in self.files])
        else:
            siblings = [self._sibling(name, blobs="blobs" in request.query) for name in self.files]
            model = {"id": self.repository, "modelId": self.repository, "sha": commit, "siblings": siblings}
            request.json(model | {"private": False, "gated": False, "disabled": False, "tags": []})

    def _sibling(self, name: str, *, blobs: bool) -> dict[str, Any]:
        if not blobs:
            return {"rfilename": name}
        sibling = {"rfilename": name, "size": len(self.files[name]), "blobId": self.digest(name, "sha1")}
        if self.large(name):
            sibling["lfs"] = {"sha256": self.digest(name), "size": len(self.files[name]), "pointerSize": 135}
        return sibling

    def _entry(self, name: str) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": len(self.files[name]), "oid": self.digest(name, "sha1")}
        if self.large(name):
            entry["lfs"] = {"oid": self.digest(name), "size": len(self.files[name]), "pointerSize": 135}
        return entry

    def _resolve(self, request: Handler, *, revision: str, name: str) -> None:
        commit = self.revision(revision)
        if commit is None:
            request.error(404, {"X-Error-Code": "RevisionNotFound"})
        elif name not in self.files:
            request.error(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif self.large(name):
            linked = {"X-Linked-Size": str(len(self.files[name])), "X-Linked-ETag": f'"{self.digest(name)}"'}
            request.redirect_to_cdn(name, {"X-Repo-Commit": commit, "ETag": f'"{self.digest(name)}"'} | linked)
        else:
            request.file(name, {"X-Repo-Commit": commit, "ETag": f'"{self.digest(name, "sha1")}"'})
