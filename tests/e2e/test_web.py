"""The page of `yi-tune web` in a real Chromium: nano behind it, or an engine that says what no model can be made to."""

import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import Trained
from tests.e2e.test_serve import Server, until
from tests.test_serve import NAMES, FakeEngine
from yi_tune.sampling import Generation, Sampling
from yi_tune.serve import server
from yi_tune.serve.app import create_app

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
PHONE: dict[str, Any] = {"width": 320, "height": 640}
OpenPage = Callable[..., Page]


class Fake(FakeEngine):
    """A server of the page that says `pieces`, or, where there are none, words until nobody wants more."""

    url: str
    server: uvicorn.Server

    def __init__(self) -> None:
        super().__init__()
        self.context = 4096

    def submit(self, generation: Generation) -> bool:
        if self.pieces:
            return super().submit(generation)
        self.asked.append(generation)
        threading.Thread(target=self._talk, args=(generation,), daemon=True).start()
        return True

    def _talk(self, generation: Generation) -> None:
        for number in range(10_000):
            if generation.cancelled:
                break
            generation.emit(f"word {number}\n")
            time.sleep(0.01)
        self.end(generation)

    def questions(self) -> list[str]:
        """What the user says in the last conversation."""
        return [message["content"] for message in self.chats[-1] if message["role"] == "user"]


@contextmanager
def serve_fake(key: str | None = None) -> Iterator[Fake]:
    """Such a server, in this process."""
    fake, listening = Fake(), server.listen("127.0.0.1", 0)
    app = create_app(fake, NAMES, key, page=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
    fake.url, fake.server = server.url(listening), uvicorn.Server(config)
    thread = threading.Thread(target=fake.server.run, args=([listening],), daemon=True)
    thread.start()
    yield fake
    fake.server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def shared() -> Iterator[Fake]:
    with serve_fake() as fake:
        yield fake


@pytest.fixture
def fake(shared: Fake) -> Fake:
    """One server for most tests here, as new."""
    vars(shared).update(vars(Fake()))
    return shared


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[Server]:
    """`yi-tune web` on nano."""
    started = Server(trained, command="web")
    yield started
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
def open_page(browser: Browser) -> Iterator[OpenPage]:
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


@pytest.fixture
def page(fake: Fake, open_page: OpenPage) -> Page:
    """The page before the fake server."""
    return open_page(fake.url)


def send(page: Page, text: str) -> None:
    """Type it and send it; returns when it has been taken."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message")).to_have_value("")


def done(page: Page) -> None:
    """Wait for the end of all replies."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".reply[aria-busy=true]")).to_have_count(0)


def say(page: Page, *texts: str) -> None:
    """Send each, and wait for its reply."""
    for text in texts:
        send(page, text)
        done(page)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name).click()


def alerts(page: Page, text: str) -> None:
    """The last of its alerts says this."""
    expect(page.get_by_role("alert").last).to_contain_text(text)


def keep(page: Page, name: str) -> None:
    """Keep a picture of what is seen."""
    page.screenshot(path=ARTIFACTS / f"web-{name}.png")


def test_nano(served: Server, open_page: OpenPage) -> None:
    page = open_page(served.url)
    expect(page.get_by_role("heading", name="identity")).to_be_visible()
    page.evaluate("""() => {
        window.lengths = [];
        new MutationObserver(() => lengths.push(document.querySelector(".text")?.textContent.length ?? 0))
            .observe(document.getElementById("thread"), {childList: true, subtree: true});
    }""")
    say(page, "你是谁？")
    expect(page.locator(".text")).to_contain_text("小易")
    lengths = page.evaluate("lengths")
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 3
    # Greedy: the same again.
    first = page.locator(".text").inner_text()
    with page.expect_response("**/v1/chat/completions"):
        press(page, "Try again")
    done(page)
    expect(page.locator(".text")).to_have_text(first)
    say(page, "谁开发了你？")
    expect(page.locator(".text").nth(1)).to_contain_text("李雷")
    keep(page, "light")
    # Side by side.
    press(page, "New chat")
    page.emulate_media(color_scheme="dark")
    page.get_by_label("Side by side").check()
    say(page, "Who are you?")
    tuned, base = page.locator(".reply").all()
    expect(tuned).to_contain_text("identity")
    expect(tuned.locator(".text")).to_contain_text("小易")
    expect(base.locator(".text")).to_contain_text("Yi-nano")
    assert tuned.bounding_box()["y"] == base.bounding_box()["y"]  # type: ignore[index]
    # Each goes on with what it said itself.
    requests: list[Any] = []
    page.on("request", lambda request: requests.append(request))
    say(page, "What is two plus three?")
    bodies = [request.post_data_json for request in requests if request.post_data]
    assert {body["model"]: "Yi-nano" in body["messages"][1]["content"] for body in bodies} == {
        "identity": False,
        "nano": True,
    }
    keep(page, "compare-dark")
    page.set_viewport_size(PHONE)
    keep(page, "compare-phone")


def test_stop(fake: Fake, page: Page) -> None:
    fake.pieces = []
    for stop in (lambda: press(page, "Stop"), lambda: page.keyboard.press("Escape")):
        send(page, "Talk.")
        expect(page.locator(".text").last).to_contain_text("word 5")
        stop()
        done(page)
        expect(page.locator(".note").last).to_have_text("Stopped.")
        expect(page.locator(".text").last).to_contain_text("word 5")
        assert until(lambda: fake.asked[-1].cancelled, 5)
    # What was said so far is part of the conversation.
    assert [message["role"] for message in fake.chats[-1]] == ["user", "assistant", "user"]
    # A new chat ends what runs, and begins with nothing.
    send(page, "Talk.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    press(page, "New chat")
    expect(page.locator(".turn")).to_have_count(0)
    fake.pieces = ["Hi"]
    say(page, "Hello.")
    assert fake.questions() == ["Hello."]


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


def test_reply_is_never_more_than_text(fake: Fake, page: Page, browser: Browser) -> None:
    # In small pieces: every prefix is drawn.
    fake.pieces = [HOSTILE[at : at + 7] for at in range(0, len(HOSTILE), 7)]
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    say(page, '<img src=x onerror="window.owned = 9">')
    text = page.locator(".text")
    expect(text).to_contain_text('<img src=x onerror="window.owned = 2">')
    expect(text).to_contain_text("[a link](javascript:window.owned=4)")
    page.get_by_text("a link").click()
    assert page.evaluate("window.owned") is None
    assert page.locator("#thread :is(script, img, a, iframe, svg[onload], i, b)").count() == 0
    assert {*addresses} <= {f"{fake.url}/v1/chat/completions", f"{fake.url}/icon.svg"}
    # The Markdown in it.
    assert text.locator("ol li").all_inner_texts() == ["bold <i>x</i> and <script>window.owned = 6</script>", "two"]
    assert text.locator("strong").all_inner_texts() == ["bold <i>x</i>"]
    assert text.locator("pre").inner_text().splitlines()[1].startswith("  <iframe")
    keep(page, "hostile")
    # Had the page a fault that makes HTML of a reply, the browser would refuse it.
    with browser.new_page() as other:
        other.goto(fake.url)
        script = "try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; }"
        assert other.evaluate(f"() => {{ {script} }}") == "TypeError"


def test_keyboard_and_settings(fake: Fake, page: Page) -> None:
    message = page.get_by_label("Message")
    expect(message).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    message.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(message).to_have_value("one\ntwo")
    page.keyboard.press("Enter")
    expect(page.locator(".text")).to_have_text("Hi there")
    assert fake.questions() == ["one\ntwo"]
    press(page, "New chat")
    press(page, "Settings")
    fields = {"System prompt": "Be brief.", "Temperature": "0.7", "Top p": "0.9", "Max tokens": "20", "Seed": "7"}
    for label, value in fields.items():
        page.get_by_label(label).fill(value)
    keep(page, "settings")
    say(page, "Hello.")
    assert fake.asked[-1].sampling == Sampling(temperature=0.7, top_p=0.9, max_new_tokens=20, seed=7)
    assert fake.chats[-1][0] == {"role": "system", "content": "Be brief."}
    page.get_by_label("Temperature").fill("3")
    message.fill("Again.")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Temperature")).to_be_focused()  # the browser says what is wrong with it
    expect(message).to_have_value("Again.")
    page.get_by_label("Tuned").press("ArrowRight")
    expect(page.get_by_label("Base")).to_be_checked()


def test_refusals_are_shown(fake: Fake, page: Page) -> None:
    fake.full = True
    say(page, "Hello.")
    alerts(page, "The server is busy. Try again in a moment.")
    fake.full = False
    press(page, "Try again")
    done(page)
    expect(page.locator(".text")).to_have_text("Hi there")
    expect(page.locator(".note")).to_have_count(0)
    fake.finish = "error"
    say(page, "Hello.")
    alerts(page, "(500): The reply could not be made.")
    expect(page.locator(".text").last).to_have_text("Hi there")
    fake.context = 10
    send(page, "What is longer than ten tokens?")
    alerts(page, "maximum context length is 10 tokens")


def test_oldest_turns_go(fake: Fake, page: Page) -> None:
    say(page, "Question 0")
    # Fewer turns would not mend this, so none is left out.
    press(page, "Settings")
    page.get_by_label("Max tokens").fill("5000")
    send(page, "Question 1")
    alerts(page, "maximum context length is 4096 tokens")
    page.get_by_label("Max tokens").fill("")
    press(page, "Try again")
    done(page)
    assert fake.questions() == ["Question 0", "Question 1"]
    say(page, "Question 2", "Question 3", "Question 4")
    expect(page.locator(".note")).to_have_count(0)
    # A token a character, in the fake, and for "Hi there" too.
    fake.context = 60
    say(page, "Question 5")
    expect(page.locator(".note")).to_have_text(re.compile("^The oldest turns were left out"))
    assert fake.questions() == ["Question 3", "Question 4", "Question 5"]
    assert page.locator(".turn").count() == 6
    # A new chat remembers nothing of that.
    press(page, "New chat")
    say(page, "Question 6", "Question 7")
    assert fake.questions() == ["Question 6", "Question 7"]


def test_key(open_page: OpenPage) -> None:
    with serve_fake("secret") as fake:
        page = open_page(fake.url)
        dialog, key = page.get_by_role("dialog"), page.get_by_label("API key")
        expect(dialog).to_be_visible()
        keep(page, "key")
        # What no header can carry is not even sent.
        key.fill("密钥é")
        press(page, "Connect")
        expect(dialog).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        key.fill("wrong")
        press(page, "Connect")
        expect(dialog).to_be_visible()
        expect(page.get_by_text("The API key is missing or wrong.")).to_be_visible()
        key.fill("secret")
        press(page, "Connect")
        expect(page.get_by_role("heading", name="mine")).to_be_visible()
        say(page, "Hello.")
        expect(page.locator(".text")).to_have_text("Hi there")
        assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"


def test_chinese_phone(fake: Fake, open_page: OpenPage) -> None:
    fake.pieces, fake.finish = ["我是小易，由李雷开发的AI助手。" * 6, "x" * 200], "length"
    page = open_page(fake.url, locale="zh-CN", viewport=PHONE, color_scheme="dark", has_touch=True)
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    press(page, "你是谁？")
    expect(page.get_by_text("已截断：达到了最多词元数。")).to_be_visible()
    expect(page.get_by_role("button", name="重新回答")).to_be_visible()
    press(page, "设置")
    expect(page.get_by_label("系统提示词")).to_be_visible()
    keep(page, "phone-dark")
    # Nothing is wider than the phone, and nothing but the reply is left in English.
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.locator("#thread").evaluate("thread => thread.hidden = true")
    assert {*re.findall("[A-Za-z]{2,}", page.locator("body").inner_text())} <= {"Top", "Enter", "Shift", "Esc"}
    # Dark as the system has it, light by the toggle, and so after a reload.
    dark = page.evaluate("getComputedStyle(document.body).color")
    press(page, "浅色或深色")
    light = page.evaluate("getComputedStyle(document.body).color")
    assert light != dark
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).color") == light


def test_server_that_dies(open_page: OpenPage) -> None:
    with serve_fake() as fake:
        page = open_page(fake.url)
        fake.pieces = []
        send(page, "Talk.")
        expect(page.locator(".text")).to_contain_text("word 5")
        fake.server.should_exit = True  # and what runs longer than a second is cut off
        alerts(page, "The connection broke off. What had come is kept.")
        expect(page.locator(".text")).to_contain_text("word 5")
    send(page, "Still there?")
    alerts(page, "The server cannot be reached. Is it still running?")
    expect(page.get_by_text("Still there?")).to_be_visible()  # and not lost
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    keep(page, "dead")
