"""ModelScope's HTTP interface, as far as its client uses it for a download or an upload."""

import base64
import json
from typing import Any

from tests.hubs.server import Handler, Hub

# A file carries the commit that touched it last: the weights came first, the small files later.
COMMITS = {True: ("1" * 40, 1_715_000_000), False: ("2" * 40, 1_716_000_000)}


class ModelScope(Hub):
    """The list of files, and files by name, of which the large ones redirect to the CDN."""

    repository = "01ai/Yi-1.5-6B-Chat"
    token_variable = "MODELSCOPE_API_TOKEN"  # noqa: S105

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.made: dict[str, int] = {}
        self.stored: dict[str, bytes] = {}

    def answer(self, request: Handler) -> None:
        model = f"/api/v1/{'datasets' if '/datasets/' in request.route else 'models'}/{self.repository}"
        name, large = request.query.get("FilePath", ""), self.large(request.query.get("FilePath", ""))
        if request.command != "GET" or request.route.startswith("/openapi/v1/models/"):
            self._take(request)
        elif request.query.get("Revision", "master") not in ("master", "v1"):
            request.error(404)
        elif request.route in (f"{model}/repo/files", f"{model}/repo/tree"):
            files = [self._entry(name) for name in self.files]
            request.json({"Code": 200, "Data": {"Files": files}, "Message": "success", "Success": True})
        elif request.route == f"{model}/repo" and large:
            request.redirect_to_cdn(name, {"X-Linked-ETag": f'"{self.digest(name)}"'})
        elif request.route == f"{model}/repo":
            request.file(name, ranges=False)  # straight from git, where ranges are not known
        else:
            request.error(404)

    def _take(self, request: Handler) -> None:
        """A part of an upload: large files go to storage first, and then all of them into a commit."""
        made, stored = self.made, self.stored
        name = request.route.removeprefix("/openapi/v1/models/")
        content = request.body()
        if request.command == "PUT":
            fault = self.strike(request, "reset")
            stored |= {} if fault else {request.route.removeprefix("/storage/"): content}
            return request.hang_up(reset=True) if fault else request.json({"Code": 200})
        sent = json.loads(content) if content else {}
        data: dict[str, Any] = {}
        if request.command == "GET" and name not in made:
            return request.error(404)
        if request.route == "/api/v1/models":
            repository = f"{sent['Path']}/{sent['Name']}"
            if repository in made:  # the client tries it before each upload
                return request.error(409)
            made[repository] = sent["Visibility"]
        elif request.route.endswith("/info/lfs/objects/batch"):
            new = {one["oid"]: {"upload": {"href": f"{self.address}/storage/{one['oid']}"}} for one in sent["objects"]}
            data["objects"] = [{"oid": oid, "actions": {} if oid in stored else to} for oid, to in new.items()]
        elif request.route.endswith("/commit/master"):
            for one in sent["actions"]:
                whole = stored[one["sha256"]] if one["type"] == "lfs" else base64.b64decode(one["content"])
                self.files = {**self.files, one["path"]: whole}
        request.json({"Code": 200, "Data": data, "Success": True, "success": True, "data": {"id": name}})

    def _entry(self, name: str) -> dict[str, Any]:
        commit, date = COMMITS[self.large(name)]
        entry = {"Name": name.rpartition("/")[2], "Path": name, "Type": "blob", "Size": len(self.files[name])}
        return entry | {"Sha256": self.digest(name), "Revision": commit, "CommittedDate": date}
