"""ModelScope's HTTP interface, as far as modelscope uses it for a download."""

from typing import Any

from tests.hubs.server import Handler, Hub

# A file carries the commit that touched it last: the weights came first, the small files later.
COMMITS = {True: ("1" * 40, 1_715_000_000), False: ("2" * 40, 1_716_000_000)}


class ModelScope(Hub):
    """The list of files, the revisions, and files by name, of which the large ones redirect to the CDN."""

    repository = "01ai/Yi-1.5-6B-Chat"
    token_variable = "MODELSCOPE_API_TOKEN"  # noqa: S105

    def answer(self, request: Handler) -> None:
        model = f"/api/v1/models/{self.repository}"
        if request.route == f"{model}/repo/files":
            self._files(request)
        elif request.route == f"{model}/revisions":
            branch = {"Revision": "master", "CreatedAt": COMMITS[False][1]}
            tag = branch | {"Revision": "v1"}
            request.json(self._success({"RevisionMap": {"Branches": [branch], "Tags": [tag]}}))
        elif request.route == f"{model}/repo":
            self._file(request)
        elif request.route == model:
            request.json(self._success({"Name": self.repository, "Revision": "master"}))
        elif request.route == "/api/v1/repos/internalAccelerationInfo":
            request.json(self._success({"InternalRegionQueryAddress": ""}))
        else:
            request.error(404)

    def _success(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"Code": 200, "Data": data, "Message": "success", "Success": True}

    def _known(self, request: Handler) -> bool:
        return request.query.get("Revision", "master") in ("master", "v1", *(commit for commit, _ in COMMITS.values()))

    def _files(self, request: Handler) -> None:
        if self._known(request):
            root = request.query.get("Root", "")
            names = [name for name in self.files if not root or name.startswith(f"{root}/")]
            request.json(self._success({"Files": [self._entry(name) for name in names]}))
        else:
            request.error(404)

    def _entry(self, name: str) -> dict[str, Any]:
        commit, date = COMMITS[self.large(name)]
        return {
            "Name": name.rpartition("/")[2],
            "Path": name,
            "Type": "blob",
            "Size": len(self.files[name]),
            "Sha256": self.digest(name),
            "IsLFS": self.large(name),
            "Revision": commit,
            "CommittedDate": date,
        }

    def _file(self, request: Handler) -> None:
        name = request.query.get("FilePath", "")
        if name not in self.files or not self._known(request):
            request.error(404)
        elif self.large(name):
            request.redirect_to_cdn(name, {"X-Linked-ETag": f'"{self.digest(name)}"'})
        else:
            # Straight from git, where ranges are not known.
            request.file(name, ranges=False)
