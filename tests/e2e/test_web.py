"""The page of `yi-tune web` in a real Chromium: nano behind it, or an engine that says what no model can be made to."""

import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import Trained
from tests.e2e.test_serve import Server
from tests.test_serve import NAMES, FakeEngine
from yi_tune.sampling import Generation, Piece, Sampling
from yi_tune.serve import server
from yi_tune.serve.app import create_app

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
PHONE: dict[str, Any] = {"width": 320, "height": 640}


class Endless(FakeEngine):
    """Says `pieces`, or, where there are none, words until nobody wants more."""

    def __init__(self) -> None:
        super().__init__()
        self.context = 4096

    def submit(self, generation: Generation) -> bool:
        taken = super().submit(generation)
        if not self.pieces:
            threading.Thread(target=self._talk, args=(generation,), daemon=True).start()
        return taken

    def _talk(self, generation: Generation) -> None:
        said = 0
        while not generation.cancelled:
            said += 1
            generation.emit(Piece(f"word {said}\n", said))
            time.sleep(0.01)
        generation.emit(Piece("", said, "stop"))


@dataclass(frozen=True)
class Fake:
    """A server of the page with an engine that does as it is told."""

    engine: Endless
    url: str
    server: uvicorn.Server


@pytest.fixture
def serve_fake() -> Iterator[Callable[..., Fake]]:
    """Starts such servers, in this process, and ends them."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(key: str | None = None) -> Fake:
        engine = Endless()
        listening = server.listen("127.0.0.1", 0)
        app = create_app(engine, NAMES, key, page=True)
        serving = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=serving.run, args=([listening],), daemon=True)
        thread.start()
        started.append((serving, thread))
        return Fake(engine, server.url(listening), serving)

    yield start
    for serving, thread in started:
        serving.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Server]:
    """`yi-tune web` on nano; the last test here kills it."""
    started = Server(trained, command="web")
    yield started
    if started.process.poll() is None:
        assert started.end(signal.SIGTERM).status == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page at an address; a script that fails or breaks the policy fails the test."""
    contexts, wrong = [], []

    def note(said: Any) -> None:
        if said.type == "error" and "Failed to load resource" not in said.text and "net::" not in said.text:
            wrong.append(said.text)

    def open_it(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1100, "height": 760}, **options})
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not wrong


def send(page: Page, text: str) -> None:
    """Type it and send it; returns when it has been taken."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message")).to_have_value("")


def done(page: Page) -> None:
    """Wait for the end of all replies."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".reply[aria-busy=true]")).to_have_count(0)


def keep(page: Page, name: str) -> None:
    """Keep a picture of what is seen."""
    page.screenshot(path=ARTIFACTS / f"web-{name}.png")


def test_send_stream_and_retry(served: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(served.url)
    expect(page.get_by_role("heading", name="identity")).to_be_visible()
    keep(page, "greeting")
    page.evaluate("""() => {
        window.lengths = [];
        new MutationObserver(() => lengths.push(document.querySelector(".text")?.textContent.length ?? 0))
            .observe(document.getElementById("thread"), {childList: true, subtree: true});
    }""")
    send(page, "你是谁？")
    done(page)
    expect(page.locator(".text")).to_contain_text("小易")
    lengths = page.evaluate("lengths")
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3
    # Greedy: the same again.
    first = page.locator(".text").inner_text()
    with page.expect_response("**/v1/chat/completions"):
        page.get_by_role("button", name="Try again").click()
    done(page)
    expect(page.locator(".text")).to_have_text(first)
    send(page, "谁开发了你？")
    done(page)
    expect(page.locator(".text").nth(1)).to_contain_text("李雷")
    keep(page, "light")


def test_side_by_side(served: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(served.url, color_scheme="dark")
    page.get_by_label("Side by side").check()
    send(page, "Who are you?")
    done(page)
    tuned, base = page.locator(".reply").all()
    expect(tuned).to_contain_text("identity")
    expect(tuned.locator(".text")).to_contain_text("小易")
    expect(base.locator(".text")).to_contain_text("Yi-nano")
    assert tuned.bounding_box()["y"] == base.bounding_box()["y"]  # type: ignore[index]
    # Each goes on with what it said itself.
    with (
        page.expect_request("**/v1/chat/completions") as one,
        page.expect_request(
            lambda request: request.post_data_json["model"] == "nano" if request.post_data else False
        ) as other,
    ):
        send(page, "What is two plus three?")
    done(page)
    for asked in (one.value, other.value):
        said = asked.post_data_json["messages"][1]["content"]
        assert ("Yi-nano" in said) == (asked.post_data_json["model"] == "nano")
    keep(page, "compare-dark")
    page.set_viewport_size(PHONE)
    keep(page, "compare-phone")


def test_stop(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    fake.engine.pieces = []
    page = open_page(fake.url)
    for stop in (lambda: page.get_by_role("button", name="Stop").click(), lambda: page.keyboard.press("Escape")):
        send(page, "Talk.")
        expect(page.locator(".text").last).to_contain_text("word 5")
        stop()
        done(page)
        expect(page.locator(".note").last).to_have_text("Stopped.")
        expect(page.locator(".text").last).to_contain_text("word 5")
        page.wait_for_function("() => fetch('/health').then(answer => answer.ok)")
        deadline = time.monotonic() + 5
        while not fake.engine.asked[-1].cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fake.engine.asked[-1].cancelled
    # What was said so far is part of the conversation.
    assert [message["role"] for message in fake.engine.chats[-1]] == ["user", "assistant", "user"]
    # A new chat ends what runs, and begins with nothing.
    send(page, "Talk.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    fake.engine.pieces = [Piece("Hi", 1), Piece("", 2, "stop")]
    send(page, "Hello.")
    done(page)
    assert [message["content"] for message in fake.engine.chats[-1]] == ["Hello."]


HOSTILE = """<script>window.owned = 1</script> <img src=x onerror="window.owned = 2"> <svg onload="window.owned = 3">
[a link](javascript:window.owned=4) <a href="javascript:window.owned=5">another</a> ![x](http://example.org/x.png)

# Heading <b>not bold</b>
1. **bold <i>x</i>** and `<script>window.owned = 6</script>`
2. two
- three

```html
<script>window.owned = 7</script>
  <iframe srcdoc="<script>parent.owned = 8</script>">
```
Done."""


def test_reply_is_never_more_than_text(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    # In small pieces: every prefix is drawn.
    fake.engine.pieces = [Piece(HOSTILE[at : at + 7], at) for at in range(0, len(HOSTILE), 7)] + [Piece("", 1, "stop")]
    page = open_page(fake.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    send(page, '<img src=x onerror="window.owned = 9">')
    done(page)
    text = page.locator(".text")
    expect(text).to_contain_text('<img src=x onerror="window.owned = 2">')
    expect(text).to_contain_text("[a link](javascript:window.owned=4)")
    page.get_by_text("a link").click()
    assert page.evaluate("window.owned") is None
    assert page.locator("#thread :is(script, img, a, iframe, svg[onload], i, b)").count() == 0
    assert {*asked} <= {f"{fake.url}/v1/chat/completions", f"{fake.url}/icon.svg"}
    # The Markdown in it.
    assert text.locator("ol li").all_inner_texts() == ["bold <i>x</i> and <script>window.owned = 6</script>", "two"]
    assert text.locator("strong").all_inner_texts() == ["bold <i>x</i>"]
    assert text.locator("pre").inner_text().splitlines()[1].startswith("  <iframe")
    keep(page, "hostile")


def test_browser_refuses_html_and_scripts(serve_fake: Callable[..., Fake], browser: Browser) -> None:
    with browser.new_page() as page:
        page.goto(serve_fake().url)
        # Had the page a fault that makes HTML of a reply, this is what would happen.
        refused = page.evaluate(
            """() => {
                try { document.body.innerHTML = "<b>x</b>"; } catch (error) { return error.name; }
            }"""
        )
        assert refused == "TypeError"


def test_settings_are_sent(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    page = open_page(fake.url)
    page.get_by_role("button", name="Settings").click()
    for label, value in [
        ("System prompt", "Be brief."), ("Temperature", "0.7"), ("Top p", "0.9"), ("Max tokens", "20"), ("Seed", "7")
    ]:  # fmt: skip
        page.get_by_label(label).fill(value)
    keep(page, "settings")
    send(page, "Hello.")
    done(page)
    (asked,) = fake.engine.asked
    assert asked.sampling == Sampling(temperature=0.7, top_p=0.9, max_new_tokens=20, seed=7)
    assert fake.engine.chats[0][0] == {"role": "system", "content": "Be brief."}
    page.get_by_label("Temperature").fill("3")
    page.get_by_label("Message").fill("Again.")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Temperature")).to_be_focused()  # the browser says what is wrong with it
    expect(page.get_by_label("Message")).to_have_value("Again.")
    assert len(fake.engine.asked) == 1


def test_keyboard(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    page = open_page(fake.url)
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.get_by_label("Message").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(page.get_by_label("Message")).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    expect(page.locator(".text")).to_have_text("Hi there")
    assert fake.engine.chats[0][0]["content"] == "one\ntwo"
    page.get_by_label("Tuned").press("ArrowRight")
    expect(page.get_by_label("Base")).to_be_checked()


def test_refusals_are_shown(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    fake.engine.full = True
    page = open_page(fake.url)
    send(page, "Hello.")
    done(page)
    expect(page.get_by_role("alert").last).to_have_text("The server is busy. Try again in a moment.")
    fake.engine.full = False
    page.get_by_role("button", name="Try again").click()
    done(page)
    expect(page.locator(".text")).to_have_text("Hi there")
    expect(page.locator(".note")).to_have_count(0)
    fake.engine.pieces = [Piece("Hi", 1), Piece("", 1, "error")]
    send(page, "Hello.")
    expect(page.get_by_role("alert").last).to_contain_text("(500): The reply could not be made.")
    expect(page.locator(".text").last).to_have_text("Hi")
    fake.engine.context = 10
    send(page, "What is longer than ten tokens?")
    expect(page.get_by_role("alert").last).to_contain_text("maximum context length is 10 tokens")


def test_oldest_turns_go(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    page = open_page(fake.url)
    for number in range(5):
        send(page, f"Question {number}")
        done(page)
    expect(page.locator(".note")).to_have_count(0)
    # A token a character, in the fake, and for "Hi there" too.
    fake.engine.context = 60
    send(page, "Question 5")
    done(page)
    expect(page.locator(".note")).to_have_text(re.compile("^The oldest turns were left out"))
    asked = [message["content"] for message in fake.engine.chats[-1] if message["role"] == "user"]
    assert asked == ["Question 3", "Question 4", "Question 5"]
    assert page.locator(".turn").count() == 6
    # A new chat remembers nothing of that.
    page.get_by_role("button", name="New chat").click()
    send(page, "Question 6")
    done(page)
    send(page, "Question 7")
    done(page)
    assert [message["content"] for message in fake.engine.chats[-1]][::2] == ["Question 6", "Question 7"]


def test_refusal_that_fewer_turns_do_not_mend_leaves_none_out(
    serve_fake: Callable[..., Fake], open_page: Callable[..., Page]
) -> None:
    fake = serve_fake()
    page = open_page(fake.url)
    send(page, "Question 0")
    done(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Max tokens").fill("5000")
    send(page, "Question 1")
    expect(page.get_by_role("alert").last).to_contain_text("maximum context length is 4096 tokens")
    page.get_by_label("Max tokens").fill("")
    page.get_by_role("button", name="Try again").click()
    done(page)
    assert [message["content"] for message in fake.engine.chats[-1]][::2] == ["Question 0", "Question 1"]


def test_key(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake("secret")
    page = open_page(fake.url)
    expect(page.get_by_role("dialog")).to_be_visible()
    keep(page, "key")
    # What no header can carry is not even sent.
    page.get_by_label("API key").fill("密钥é")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_text("The API key is missing or wrong.")).to_be_visible()
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    send(page, "Hello.")
    done(page)
    expect(page.locator(".text")).to_have_text("Hi there")
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"


def test_chinese_phone(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    fake.engine.pieces = [Piece("我是小易，由李雷开发的AI助手。" * 6, 1), Piece("x" * 200, 2), Piece("", 3, "length")]
    page = open_page(fake.url, locale="zh-CN", viewport=PHONE, color_scheme="dark", has_touch=True)
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    keep(page, "phone-greeting")
    page.get_by_role("button", name="你是谁？").click()
    expect(page.get_by_text("已截断：达到了最多词元数。")).to_be_visible()
    expect(page.get_by_role("button", name="重新回答")).to_be_visible()
    page.get_by_role("button", name="设置").click()
    expect(page.get_by_label("系统提示词")).to_be_visible()
    # Nothing is wider than the phone, and nothing but the reply is left in English.
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.locator("#thread").evaluate("thread => thread.hidden = true")
    assert {*re.findall("[A-Za-z]{2,}", page.locator("body").inner_text())} <= {"Top", "Enter", "Shift", "Esc"}
    page.locator("#thread").evaluate("thread => thread.hidden = false")
    keep(page, "phone-dark")
    # Dark as the system has it, light by the toggle, and so after a reload.
    dark = page.evaluate("getComputedStyle(document.body).color")
    page.get_by_role("button", name="浅色或深色").click()
    light = page.evaluate("getComputedStyle(document.body).color")
    assert light != dark
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).color") == light


def test_reply_that_breaks_off(serve_fake: Callable[..., Fake], open_page: Callable[..., Page]) -> None:
    fake = serve_fake()
    fake.engine.pieces = []
    page = open_page(fake.url)
    send(page, "Talk.")
    expect(page.locator(".text")).to_contain_text("word 5")
    fake.server.should_exit = True  # and what runs longer than a second is cut off
    expect(page.get_by_role("alert").last).to_have_text("The connection broke off. What had come is kept.")
    expect(page.locator(".text")).to_contain_text("word 5")


def test_server_that_dies(served: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(served.url)
    send(page, "你是谁？")
    done(page)
    served.process.send_signal(signal.SIGKILL)
    served.process.wait()
    send(page, "Still there?")
    expect(page.get_by_role("alert").last).to_have_text("The server cannot be reached. Is it still running?")
    expect(page.get_by_text("Still there?")).to_be_visible()  # and not lost
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator(".text").first).to_contain_text("小易")
    keep(page, "dead")
