"""ModelScope's HTTP interface, as far as modelscope uses it for a download."""

from typing import Any

from tests.hubs.server import Handler, Hub

# A file carries the commit that touched it last: the weights came first, the small files later.
COMMITS = {True: ("1" * 40, 1_715_000_000), False: ("2" * 40, 1_716_000_000)}


class ModelScope(Hub):
    """The list of files, and files by name, of which the large ones redirect to the CDN."""

    repository = "01ai/Yi-1.5-6B-Chat"
    token_variable = "MODELSCOPE_API_TOKEN"  # noqa: S105

    def answer(self, request: Handler) -> None:
        model = f"/api/v1/models/{self.repository}"
        name, large = request.query.get("FilePath", ""), self.large(request.query.get("FilePath", ""))
        if request.query.get("Revision", "master") not in ("master", "v1"):
            request.error(404)
        elif request.route == f"{model}/repo/files":
            files = [self._entry(name) for name in self.files]
            request.json({"Code": 200, "Data": {"Files": files}, "Message": "success", "Success": True})
        elif request.route == f"{model}/repo" and large:
            request.redirect_to_cdn(name, {"X-Linked-ETag": f'"{self.digest(name)}"'})
        elif request.route == f"{model}/repo":
            request.file(name, ranges=False)  # straight from git, where ranges are not known
        else:
            request.error(404)

    def _entry(self, name: str) -> dict[str, Any]:
        commit, date = COMMITS[self.large(name)]
        entry = {"Name": name.rpartition("/")[2], "Path": name, "Type": "blob", "Size": len(self.files[name])}
        return entry | {"Sha256": self.digest(name), "Revision": commit, "CommittedDate": date}
