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
        model = re.escape(self.repository)  # or a dataset
        info = re.fullmatch(rf"/api/(?:models|datasets)/{model}(?:/(?:revision|tree)/([^/]+))?", request.route)
        resolve = re.fullmatch(rf"(?:/datasets)?/{model}/resolve/([^/]+)/(.+)", request.route)
        commit = self.revision((info and info[1]) or (resolve and resolve[1]) or "main")
        if info is None and resolve is None:
            request.error(404, {"X-Error-Code": "RepoNotFound"})
        elif commit is None:
            request.error(404, {"X-Error-Code": "RevisionNotFound"})
        elif resolve is not None:
            self._resolve(request, commit, resolve[2])
        elif "/tree/" in request.route:
            request.json([self._sibling(name) for name in self.files])
        else:
            request.json({"id": self.repository, "sha": commit, "siblings": list(map(self._sibling, self.files))})

    def _sibling(self, name: str) -> dict[str, Any]:
        """A file as the model's page has it, and as the tree has it."""
        size, oid, digest = len(self.files[name]), self.digest(name, "sha1"), self.digest(name)
        sibling = {"rfilename": name, "size": size, "blobId": oid, "type": "file", "path": name, "oid": oid}
        lfs = {"sha256": digest, "oid": digest, "size": size, "pointerSize": 135}
        return sibling | ({"lfs": lfs} if self.large(name) else {})

    def _resolve(self, request: Handler, commit: str, name: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{self.digest(name, "sha256" if self.large(name) else "sha1")}"'}
        if self.large(name):
            linked = {"X-Linked-Size": str(len(self.files[name])), "X-Linked-ETag": headers["ETag"]}
            request.redirect_to_cdn(name, headers | linked)
        else:
            request.file(name, headers)
