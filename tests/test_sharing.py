import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.test_overview import GENERAL, begun, check, finish
from tests.test_report import answer, score
from yi_tune.errors import YiTuneError
from yi_tune.runs import Run
from yi_tune.sharing import keep_check, write_page

# What a model may say, and a user may be called.
HOSTILE = (
    "</p></div><script>alert(1)</script><style>*{display:none}</style><img src=http://evil.test/ onerror=alert(1)>"
)


class Tags(HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(run: Run) -> Tags:
    """The page of a run, whose tags are all closed."""
    page = write_page(run).read_text(encoding="utf-8")
    for tag in ("div", "p", "table", "td", "details", "article", "svg", "main", "dl", "figure"):
        assert len(re.findall(rf"<{tag}[\s>]", page)) == page.count(f"</{tag}>"), tag
    return Tags(page)


def hostile(workspace: Path) -> Run:
    """A run of which every text is made to break out of the page."""
    run = begun(workspace, "a", lora_target=HOSTILE)
    run.write("run.json", json.dumps(run.record | {"identity": run.record["identity"] | {"name": HOSTILE}}))
    run.record_failure(YiTuneError(HOSTILE))
    asked = score(
        1, 0, answer("who", HOSTILE, HOSTILE, HOSTILE), answer("plain", "word " * 400 + "w" * 400, "8 易" * 300)
    )
    prompts = [{"lang": "en", "kind": "x", "prompt": HOSTILE, "base": HOSTILE, "tuned": HOSTILE, "mentions": True}]
    run.write("check.json", json.dumps(asked | {"general": GENERAL | {"answers": prompts}}))
    return run


def test_page_of_a_run_that_was_checked(tmp_path: Path) -> None:
    run = begun(tmp_path, "a", lora_rank=16)
    finish(run)
    assert "To know them: yi-tune check --run a" in page_of(run).text
    check(run)
    page = page_of(run)
    assert "To know them" not in page.text
    for wanted in (
        "小易 by 李雷: report of a fine-tuning",
        *("75.0%", "before: 0.0%", "I am Yi.", "I am Ada.", "after: not right", "What it missed (2)"),
        *("plain answers kept", "50.0%", "0.1627", "distance from the base"),
        *("Step 2 of 4.", "Training loss: 2.5000", "lora_rank", "--set", "nano's own", "llamafactory 0.9.5"),
    ):
        assert wanted in page.text
    assert ("html", {"lang": "en"}) in page.tags
    line, evaluated = (attributes["points"] for tag, attributes in page.tags if tag == "polyline")
    assert line == "384.0,0.0 720.0,70.7 "  # steps 1 and 2 of the 2 that are logged, of losses 3 and 2
    assert evaluated == "720.0,35.3 "


def test_page_of_a_run_that_failed(tmp_path: Path) -> None:
    run = begun(tmp_path, "a")
    run.record_failure(YiTuneError(f"The file {run.folder}/data is gone."))
    page = page_of(run)
    assert "The training failed. The file …/saves/nano/a/data is gone." in page.text
    assert "It is not finished" in page.text
    assert "Does it know who it is?" not in page.text
    # A run whose record is broken, or that has not begun, has a page too.
    (run.folder / "trainer_log.jsonl").unlink()
    assert "svg" not in {tag for tag, _ in page_of(run).tags}
    run.write("run.json", "{")
    assert "no readable run.json" in page_of(run).text


def test_page_without_an_identity(tmp_path: Path) -> None:
    run = begun(tmp_path, "a")
    run.write("run.json", json.dumps(run.record | {"identity": {}}))
    asked = score(0, 0, answer("plain", "8", "8")) | {"identity": {}}
    run.write("report.json", json.dumps(asked))
    run.write(
        "check.json", json.dumps(asked | {"general": GENERAL | {"mentions": None, "base_mentions": None, "kl": None}})
    )
    text = page_of(run).text
    assert "The run a: report of a fine-tuning" in text
    assert "No identity was trained" in text
    assert "identity questions right" not in text


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    page = page_of(hostile(tmp_path))
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy
    assert re.fullmatch(r"default-src 'none'; style-src 'sha256-\S{44}'; base-uri 'none'; form-action 'none'", policy)
    assert not {"script", "img", "link", "iframe", "object", "a", "form"} & {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("style") == 1
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "style", "action")]
    assert page.text.count(HOSTILE) >= 10


def test_nothing_private_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path, "a", hub_token="s3cret")  # noqa: S106
    finish(run)
    monkeypatch.chdir(tmp_path.parent)  # so that commands name the workspace
    write_page(run)
    page = run.page.read_text(encoding="utf-8")
    for private in (str(tmp_path), "/ws/saves", "/models/m", "s3cret", "model_name_or_path"):
        assert private not in page


def test_long_curve_is_thinned(tmp_path: Path) -> None:
    run = begun(tmp_path, "a")
    logs = [{"current_steps": step, "total_steps": 9999, "loss": 2.0} for step in range(1, 9999)]
    (run.folder / "trainer_log.jsonl").write_text("".join(f"{json.dumps(log)}\n" for log in logs))
    line = next(attributes["points"] for tag, attributes in page_of(run).tags if tag == "polyline")
    assert line
    assert 500 < len(line.split()) <= 1000


def test_result_of_a_check_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path, "a")
    finish(run)
    content: dict[str, Any] = {**score(3, 1), "general": GENERAL}
    assert keep_check(run, run.record, content) == run.page
    assert json.loads(run.check.read_text(encoding="utf-8")) == content
    assert "75.0%" in run.page.read_text(encoding="utf-8")
    run.check.unlink()
    # Not where the folder holds another training by now, or is being trained in.
    assert keep_check(run, run.record | {"created": "2025"}, content) is None
    with run.lock():
        assert keep_check(run, run.record, content) is None
    assert not run.check.exists()
    assert capsys.readouterr().err.count("is not kept") == 2
    # Nor where nothing can be written.
    run.check.with_name("check.json.part").mkdir()
    assert keep_check(run, run.record, content) is None
    assert "cannot be kept" in capsys.readouterr().err


def test_page_in_another_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chinese = {"en": "zh-CN", "%(title)s: report of a fine-tuning": "%(title)s：微调报告"}
    monkeypatch.setattr("gettext.gettext", lambda text: chinese.get(text, text))
    page = page_of(begun(tmp_path, "a"))
    assert ("html", {"lang": "zh-CN"}) in page.tags
    assert "小易 by 李雷：微调报告" in page.text
