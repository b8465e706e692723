"""The page of `yi-tune web` in a real Chromium: nano behind it, or an engine that says what no model can be made to."""

import json
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
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.e2e.conftest import Trained
from tests.e2e.test_serve import Server, until
from tests.test_serve import NAMES, FakeEngine
from tests.test_sharing import hostile
from yi_tune.data.identity import check_messages, read_jsonl
from yi_tune.sampling import Generation, Sampling
from yi_tune.serve import server
from yi_tune.serve.app import create_app
from yi_tune.sharing import write_page

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
        self.base_pieces: list[str] = []  # what the base says, where that is something else

    def submit(self, generation: Generation) -> bool:
        if self.pieces:
            usual = self.pieces
            self.pieces = (generation.base and self.base_pieces) or usual
            taken = super().submit(generation)
            self.pieces = usual
            return taken
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


def stripping(app: ASGIApp, prefix: str) -> ASGIApp:
    """What a notebook's proxy makes of it: it is below `prefix`, of which it is not told, and nothing is elsewhere."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(prefix) if scope["path"].startswith(f"{prefix}/") else "/not/here"
        await app(scope | {"path": path, "raw_path": path.encode()}, receive, send)

    return proxy


@contextmanager
def serve_fake(key: str | None = None, names: tuple[str, str] = NAMES, prefix: str = "") -> Iterator[Fake]:
    """Such a server, in this process."""
    fake, listening = Fake(), server.listen("127.0.0.1", 0)
    app = stripping(create_app(fake, names, key, page=True), prefix)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
    fake.url, fake.server = server.url(listening) + prefix, uvicorn.Server(config)
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
        # A name for this machine that the browser does not trust more than another machine's.
        other = "--host-resolver-rules=MAP other.test 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=program, args=[other])
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


def press(page: Page | Locator, name: str) -> None:
    page.get_by_role("button", name=name).click()


def bodies(page: Page) -> list[Any]:
    """Of each chat that the page asks for from here on: the model, and what is said."""
    seen: list[Any] = []

    def note(request: Any) -> None:
        if request.post_data:
            body = request.post_data_json
            seen.append((body["model"], [message["content"] for message in body["messages"]]))

    page.on("request", note)
    return seen


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
    # The base, which comes later, has not heard that name.
    page.get_by_label("Base").check()
    say(page, "你叫什么名字？")
    expect(page.locator(".text").last).to_contain_text("Yi-nano")
    expect(page.locator(".text").last).not_to_contain_text("小易")
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
    say(page, "What is two plus three?")
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
    alerts(page, "The reply could not be made. The server's log says why.")
    expect(page.locator(".text").last).to_have_text("Hi there")
    fake.context = 10
    send(page, "What is longer than ten tokens?")
    alerts(page, "This is more than the model takes, even without the turns before.")


ERRORS: list[tuple[int, dict[str, Any] | None, str]] = [
    (400, {"message": "Invalid 'seed'", "code": "invalid_value"}, "服务器拒绝了此请求。 Invalid 'seed'"),
    (400, {"message": "tokens", "code": "context_length_exceeded"}, "即使略去之前的几轮，内容仍超出模型的上下文长度。"),
    (403, {"message": "yi-tune web --allow-origin"}, "服务器拒绝以这种方式发来的请求。 yi-tune web --allow-origin"),
    (404, {"message": "There is no such model."}, "服务器上已没有这个模型或地址。请重新加载页面。"),
    (413, None, "消息过长，服务器不接受。"),  # a proxy's, which is no JSON
    (429, {"message": "Busy."}, "服务器正忙，请稍后再试。"),
    (500, {"message": "A mistake."}, "未能生成回答，原因见服务器日志。"),
    (502, None, "无法连接服务器。它还在运行吗？"),
    (418, {"message": "Tea?"}, "服务器返回错误（418）。 Tea?"),
]


def test_errors_in_the_language_of_the_browser(fake: Fake, open_page: OpenPage) -> None:
    page = open_page(fake.url, locale="zh-CN")
    answers = iter(ERRORS)

    def refuse(route: Any) -> None:
        status, told, _ = next(answers)
        route.fulfill(status=status, body="<h1>No</h1>" if told is None else json.dumps({"error": told}))

    page.route("**/v1/chat/completions", refuse)
    page.get_by_label("输入消息").fill("你好")
    page.keyboard.press("Enter")
    for number, (_, _, said) in enumerate(ERRORS):
        if number:
            press(page, "重新回答")
        expect(page.locator(".note")).to_contain_text(said)


def test_oldest_turns_go(fake: Fake, page: Page) -> None:
    # However many tokens a reply may have, the conversation is known for as long as the model takes it.
    press(page, "Settings")
    page.get_by_label("Max tokens").fill("5000")
    say(page, "Question 0", "Question 1", "Question 2", "Question 3", "Question 4")
    assert fake.questions() == [f"Question {number}" for number in range(5)]
    expect(page.locator(".note")).to_have_count(0)
    # A token a character, in the fake, and for "Hi there" too.
    fake.context = 60
    say(page, "Question 5")
    expect(page.locator(".note")).to_have_text(re.compile("^The oldest turns were left out"))
    assert fake.questions() == ["Question 3", "Question 4", "Question 5"]
    assert page.locator(".turn").count() == 6
    # What was left out is not told again, and comes back where other turns make room for it.
    asked = bodies(page)
    say(page, "Question 6")
    assert [said[0] for _, said in asked] == ["Question 3", "Question 4"]
    expect(page.locator(".note")).to_have_count(2)
    for number in (6, 5, 4, 3, 2):
        press(page.locator(".turn").nth(number), "Delete this turn")
    say(page, "Question 7")
    assert fake.questions() == ["Question 0", "Question 1", "Question 7"]
    # A new chat remembers nothing of that.
    press(page, "New chat")
    say(page, "Question 8", "Question 9")
    assert fake.questions() == ["Question 8", "Question 9"]


def test_why_a_reply_is_cut_off(fake: Fake, page: Page) -> None:
    fake.finish = "length"  # the fake counts a token a piece, and one at the end
    say(page, "Hello.")
    expect(page.locator(".note")).to_have_text("Cut off: the conversation fills all that the model takes.")
    press(page, "Settings")
    page.get_by_label("Max tokens").fill("3")
    press(page, "Try again")
    expect(page.locator(".note")).to_have_text("Cut off: that was the maximum of tokens.")


def test_each_model_has_its_own_history(fake: Fake, page: Page) -> None:
    fake.pieces, fake.base_pieces = ["I am mine."], ["I am nano."]
    asked = bodies(page)
    say(page, "One?", "Two?")
    asked.clear()
    page.get_by_label("Side by side").check()
    say(page, "Three?")
    tuned, base = ([said for model, said in asked if model == name] for name in NAMES)
    assert tuned == [["One?", "I am mine.", "Two?", "I am mine.", "Three?"]]
    # The base is asked what it was not, from the start and in its own words, and that is seen beside the other's.
    assert base == [
        ["One?"],
        ["One?", "I am nano.", "Two?"],
        ["One?", "I am nano.", "Two?", "I am nano.", "Three?"],
    ]
    assert page.locator(".text").all_inner_texts() == ["I am mine.", "I am nano."] * 3
    expect(page.locator(".note")).to_have_count(0)
    # The other way round, once the base has been alone.
    page.get_by_label("Base").check()
    say(page, "Four?")
    page.get_by_label("Tuned").check()
    asked.clear()
    say(page, "Five?")
    assert [said[-1] for _, said in asked] == ["Four?", "Five?"]
    assert all("I am nano." not in said for _, said in asked)
    assert page.locator(".turn").nth(3).locator(".text").all_inner_texts() == ["I am mine.", "I am nano."]


def test_stop_while_a_model_catches_up(fake: Fake, page: Page) -> None:
    say(page, "One?", "Two?")
    fake.pieces = []
    page.get_by_label("Base").check()
    send(page, "Three?")
    expect(page.locator(".note")).to_have_text("It answers the earlier turns first: 1/2")
    press(page, "Stop")
    done(page)
    expect(page.locator(".note")).to_have_text("Stopped.")
    assert page.locator(".text").all_inner_texts() == ["Hi there", "Hi there", ""]  # no half of an earlier reply
    fake.pieces = ["Yes"]
    press(page, "Try again")
    done(page)
    assert fake.questions() == ["One?", "Two?", "Three?"]


TABLE = r"""| Model | Size |
|:--|--:|
| **6B** | 12 GB |
| `a \| b` | 18 |
No row.

a | b

~~~~python
~~~
print("|---|")
~~~~
Done."""


def test_tables_code_and_copies(fake: Fake, page: Page) -> None:
    fake.pieces = [*TABLE]  # every prefix is drawn
    say(page, "A table.")
    table, text, message = page.locator("table"), page.locator(".text"), page.get_by_label("Message")
    assert table.locator("tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    ) == [
        ["Model", "Size"],
        ["6B", "12 GB"],
        ["a | b", "18"],
    ]
    assert table.locator("th").nth(1).evaluate("cell => getComputedStyle(cell).textAlign") == "right"
    assert text.locator("> p").all_inner_texts() == ["No row.", "a | b", "Done."]
    expect(text.locator(".bar")).to_have_text("python")
    expect(page.locator(".reply > .tools")).to_have_text(re.compile(rf"^{len(TABLE) + 1} tokens · [\d.]+ tokens/s\s*$"))
    keep(page, "table")
    # Seen where the pointer or the focus is.
    copy_code, copy = text.locator(".bar button"), page.locator(".reply > .tools button")
    message.hover()
    expect(copy).to_have_css("opacity", "0")
    page.locator(".reply").hover()
    expect(copy).to_have_css("opacity", "1")
    message.hover()
    message.focus()
    for _ in range(4):  # over Export and Try again
        page.keyboard.press("Shift+Tab")
        if copy.evaluate("copy => copy === document.activeElement"):
            break
    expect(copy).to_have_css("opacity", "1")
    page.keyboard.press("Enter")
    expect(copy).to_have_accessible_name("Copied")
    message.focus()
    page.keyboard.press("Control+V")
    expect(message).to_have_value(TABLE)
    copy_code.click()
    expect(copy_code).to_have_accessible_name("Copied")
    message.fill("")
    page.keyboard.press("Control+V")
    expect(message).to_have_value('~~~\nprint("|---|")')


def test_edit_and_delete(fake: Fake, page: Page) -> None:
    say(page, "One?", "Two?", "Three?")
    turns = page.locator(".turn")
    press(turns.nth(1), "Edit")
    field = turns.nth(1).get_by_label("Message")
    expect(field).to_be_focused()
    field.fill("Never mind")
    page.keyboard.press("Escape")
    expect(turns.nth(1).locator(".bubble")).to_have_text("Two?")
    expect(turns.nth(1).get_by_role("button", name="Edit")).to_be_focused()
    press(turns.nth(1), "Edit")
    keep(page, "edit")
    field.fill("Two, please?")
    page.keyboard.press("Enter")
    expect(turns).to_have_count(2)
    done(page)
    assert fake.questions() == ["One?", "Two, please?"]
    press(turns.nth(0), "Delete this turn")
    expect(turns).to_have_count(1)
    say(page, "Four?")
    assert fake.questions() == ["Two, please?", "Four?"]
    # Not while a reply is being made.
    fake.pieces = []
    send(page, "Talk.")
    expect(turns.nth(0).get_by_role("button", name="Edit")).to_be_hidden()
    press(page, "Stop")
    done(page)
    for _ in range(3):
        press(turns.nth(0), "Delete this turn")
    expect(page.get_by_role("heading", name="mine")).to_be_visible()


def test_kept_in_this_browser(fake: Fake, page: Page) -> None:
    press(page, "Settings")
    page.get_by_label("System prompt").fill("Be brief.")
    say(page, "One?")
    page.reload()
    expect(page.locator(".bubble")).to_have_text("One?")
    expect(page.locator(".text")).to_have_text("Hi there")
    say(page, "Two?")
    assert [message["content"] for message in fake.chats[-1]] == ["Be brief.", "One?", "Hi there", "Two?"]
    # The page is left in the middle of a reply.
    fake.pieces = []
    send(page, "Talk.")
    expect(page.locator(".text").last).to_contain_text("word 5")
    page.reload()
    expect(page.locator(".text").last).to_contain_text("word 5")
    expect(page.locator(".note")).to_have_text(re.compile("^(Stopped|The connection broke off)"))
    press(page.locator(".turn").first, "Delete this turn")
    page.reload()
    expect(page.locator(".turn")).to_have_count(2)
    press(page, "New chat")
    page.reload()
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    expect(page.locator(".turn")).to_have_count(0)
    # A conversation with a model is not another's.
    fake.pieces = ["Hi"]
    say(page, "One?")
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "other"}, {"id": "nano"}]}))
    page.reload()
    expect(page.get_by_role("heading", name="other")).to_be_visible()


def test_browser_that_keeps_nothing_and_has_no_https(open_page: OpenPage) -> None:
    with serve_fake("secret") as fake:
        page = open_page("about:blank")
        for area in ("localStorage", "sessionStorage"):
            refusing = "{ get() { throw new DOMException('Access is denied', 'SecurityError'); } }"
            page.add_init_script(f"Object.defineProperty(window, '{area}', {refusing});")
        page.goto(fake.url.replace("127.0.0.1", "other.test"))
        page.get_by_label("API key").fill("secret")
        press(page, "Connect")
        say(page, "One?", "Two?")
        assert fake.questions() == ["One?", "Two?"]
        press(page, "Light or dark")
        assert page.evaluate("isSecureContext") is False
        reply, message = page.locator(".reply").last, page.get_by_label("Message")
        reply.hover()
        press(reply, "Copy")
        expect(reply.get_by_role("button", name="Copied")).to_be_focused()
        message.focus()
        page.keyboard.press("Control+V")
        expect(message).to_have_value("Hi there")


def test_export(fake: Fake, page: Page, tmp_path: Path) -> None:
    press(page, "Settings")
    page.get_by_label("System prompt").fill("Be brief.")
    fake.pieces = ["我是\n“小易”"]
    say(page, "你是谁？")
    fake.full = True
    say(page, "Not answered.")
    with page.expect_download() as download:
        press(page, "Export chat")
    assert download.value.suggested_filename == "mine.jsonl"
    path = tmp_path / "mine.jsonl"
    download.value.save_as(path)
    # As /load of the chat reads it.
    assert check_messages([*read_jsonl(path)]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你是谁？"},
        {"role": "assistant", "content": "我是\n“小易”"},
    ]


def test_under_a_path_of_a_proxy(open_page: OpenPage) -> None:
    with serve_fake(prefix="/user/me/proxy/8000") as fake:
        page = open_page("about:blank")
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(f"{fake.url}/")
        expect(page.get_by_role("heading", name="mine")).to_be_visible()
        say(page, "Hello.")
        expect(page.locator(".text")).to_have_text("Hi there")
        assert page.evaluate("getComputedStyle(document.body).display") == "flex"  # page.css is there
        assert all(address.startswith(f"{fake.url}/") for address in addresses), addresses


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
        assert "secret" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")


def test_chinese_phone(fake: Fake, open_page: OpenPage) -> None:
    fake.pieces, fake.finish = ["我是小易，由李雷开发的AI助手。" * 6, "x" * 200], "length"
    page = open_page(fake.url, locale="zh-CN", viewport=PHONE, color_scheme="dark", has_touch=True)
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    press(page, "设置")
    page.get_by_label("最多 token 数").fill("3")
    press(page, "设置")
    press(page, "你是谁？")
    expect(page.get_by_text("已截断：达到了最多 token 数。")).to_be_visible()
    for name in ("重新回答", "导出对话", "复制", "编辑", "删除这一轮"):
        expect(page.get_by_role("button", name=name)).to_have_css("opacity", "1")
    expect(page.locator(".reply > .tools")).to_contain_text("3 个 token · ")
    keep(page, "phone-chat")
    press(page, "设置")
    expect(page.get_by_label("系统提示词")).to_be_visible()
    keep(page, "phone-dark")
    # Nothing is wider than the phone, and nothing but the reply is left in English.
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.locator("#thread").evaluate("thread => thread.hidden = true")
    assert {*re.findall("[A-Za-z]{2,}", page.locator("body").inner_text())} <= {"Top", "Enter", "Shift", "Esc", "token"}
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


# The report of a run


def test_report_to_share(tmp_path: Path, open_page: OpenPage) -> None:
    asked: list[str] = []
    page = open_page("about:blank", viewport=PHONE)
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    address = write_page(hostile(tmp_path)).as_uri()
    page.goto(address)
    assert asked == [address]
    # The policy lets its own style through. Long words and a narrow screen make nothing wider than the screen.
    expect(page).to_have_title(re.compile("<script>alert.* by 李雷: report of a fine-tuning"))
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    schemes: list[tuple[Any, str]] = [("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 22, 28)")]
    for scheme, paper in schemes:
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        page.screenshot(path=ARTIFACTS / f"report-{scheme}.png", full_page=True)
