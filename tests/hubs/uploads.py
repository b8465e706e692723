"""Hugging Face's HTTP interface, as far as huggingface_hub uses it to make a repository and upload into it."""

import base64
import hashlib
import json
import re

from tests.hubs.huggingface import COMMIT, HuggingFace
from tests.hubs.server import Handler


class Uploads(HuggingFace):
    """Takes files for any repository. `existing`: those that are there; `received`: what was committed, by path."""

    def __init__(self, *, token: str, existing: tuple[str, ...] = ()) -> None:
        super().__init__({}, token=token)
        self.existing, self.created = set(existing), dict[str, str]()
        self.received: dict[str, dict[str, bytes]] = {}
        self._objects: dict[str, bytes] = {}

    def answer(self, request: Handler) -> None:
        lfs = re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", request.route)
        api = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", request.route)
        if request.route == "/api/repos/create":
            self._create(request)
        elif request.route == "/api/validate-yaml":
            request.json({"errors": [], "warnings": []})
        elif lfs is not None:
            self._batch(request)
        elif api is not None and api[2] == "preupload":
            large = [
                (file["path"], file["path"].endswith((".safetensors", ".gguf"))) for file in request.content()["files"]
            ]
            modes = [{"path": path, "uploadMode": "lfs" if is_large else "regular"} for path, is_large in large]
            request.json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        elif api is not None:
            self._commit(request, api[1])
        else:
            super().answer(request)

    def put(self, request: Handler) -> None:
        """An object of git-lfs, at an address that is its own permission: no token may come with it."""
        digest = request.route.removeprefix("/cdn/")
        if hashlib.sha256(request.body).hexdigest() != digest:
            request.error(400)
            return
        self._objects[digest] = request.body
        request.reply(200, {})

    def _create(self, request: Handler) -> None:
        wanted = request.content()
        repository = f"{wanted['organization']}/{wanted['name']}"
        if repository in self.existing:
            request.json({"error": "You already created this model repo", "url": f"{self.address}/{repository}"}, 409)
            return
        self.existing.add(repository)
        self.created[repository] = wanted["visibility"]
        request.json({"url": f"{self.address}/{repository}", "name": repository})

    def _batch(self, request: Handler) -> None:
        to = f"http://localhost:{self.server_port}/cdn"
        objects = [
            entry | {"actions": {"upload": {"href": f"{to}/{entry['oid']}"}}} for entry in request.content()["objects"]
        ]
        request.json({"transfer": "basic", "objects": objects})

    def _commit(self, request: Handler, repository: str) -> None:
        files = self.received.setdefault(repository, {})
        for line in request.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self._objects[value["oid"]]
        request.json(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.address}/{repository}/commit/{COMMIT}"}
        )
