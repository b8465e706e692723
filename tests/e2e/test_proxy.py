"""`yi-tune web` behind a real nginx: at the root and under a path, with the name passed on and without."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.e2e.conftest import Trained
from tests.e2e.test_serve import RAMBLING, Server, until

PUBLIC = "https://chat.example.org"
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors; events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
  fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    {passed}
    location / {{ proxy_pass {upstream}; }}
    location /proxy/8000/ {{ proxy_pass {upstream}; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Server]:
    if not shutil.which("nginx"):
        pytest.skip("there is no nginx on the PATH (Debian: apt-get install nginx-light)")
    # The second for a browser, which is to have TLS from nobody here.
    origins = [PUBLIC, "http://chat.example.org:*"]
    started = Server(trained, *[word for origin in origins for word in ("--allow-origin", origin)], command="web")
    yield started
    assert started.end(signal.SIGTERM).status == 0


@pytest.fixture(
    scope="module", params=["", "proxy_set_header Host $http_host;"], ids=["nginx's name", "name passed on"]
)
def proxy(served: Server, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of nginx before the server."""
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    settings = NGINX.format(folder=folder, port=port, upstream=served.url, passed=request.param)
    (folder / "nginx.conf").write_text(settings)
    nginx = subprocess.Popen(["nginx", "-e", folder / "errors", "-c", folder / "nginx.conf"])

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    assert until(answers, 10), (folder / "errors").read_text()
    yield f"http://127.0.0.1:{port}"
    nginx.terminate()
    nginx.wait(10)


@pytest.mark.parametrize("path", ["/", "/proxy/8000/"])
def test_page_and_api(proxy: str, path: str, request: pytest.FixtureRequest) -> None:
    # What a browser sends that is on the page. With a script that is a module it sends the origin too.
    mine = {"host": "chat.example.org", "origin": PUBLIC}
    with httpx.Client(base_url=proxy + path, headers=mine, timeout=60) as browser:
        assert "<html" in browser.get("").text
        assert "javascript" in browser.get("page.js").headers["content-type"]
        model = browser.get("v1/models").json()["data"][1]["id"]
        body = {"model": model, "messages": RAMBLING, "max_tokens": 60, "stream": True}
        with browser.stream("POST", "v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200, reply.read()
            pieces = list(reply.iter_raw())
        assert b"[DONE]" in pieces[-1]
        # As they were made, though by itself nginx gathers some KB of them.
        assert len(pieces) > 20
        foreign = browser.post("v1/chat/completions", json=body, headers={"origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "unknown_origin")
        # nginx takes every name. Where it passes them on, the server takes none that was pointed there.
        rebound = browser.get("", headers={"host": "evil.example"})
        assert rebound.status_code == (403 if "passed" in request.node.name else 200)


def test_in_a_browser(proxy: str) -> None:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        resolver = "--host-resolver-rules=MAP chat.example.org 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=program, args=[resolver])
        for path in ("/", "/proxy/8000/"):
            page = browser.new_context().new_page()
            page.goto(proxy.replace("127.0.0.1", "chat.example.org") + path)
            expect(page.get_by_role("heading", name="identity")).to_be_visible()
            page.get_by_role("textbox", name="Message", exact=True).fill("你是谁？")
            page.keyboard.press("Enter")
            expect(page.locator(".text")).to_contain_text("小易", timeout=60_000)
        browser.close()
