import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.plans import plan
from tests.test_cli import Cli, yi_tune  # noqa: F401
from tests.test_report import IDENTITY, answer, make, score, write_log
from yi_tune.errors import YiTuneError
from yi_tune.language import speak
from yi_tune.output import TextConsole
from yi_tune.overview import compare, overview, print_comparison, print_overview
from yi_tune.runs import Run
from yi_tune.sharing import write_page

GENERAL = {"mentions": 0.25, "base_mentions": 0.0, "kl": 0.1627, "answers": []}


def begun(workspace: Path, name: str, *, model: str = "nano", **overrides: Any) -> Run:
    """A run of today that has logged two of four steps."""
    record = plan(overrides=overrides).record | {"model": model, "identity": IDENTITY, "weights": "w" * 64}
    del record["created"]
    run = make(workspace, name, **record)
    write_log(run.folder)
    return run


def finish(run: Run) -> None:
    """Let a run come to its end: two questions were asked."""
    few = score(1, 1)
    run.write("report.json", json.dumps({"loss": 2.5, "seconds": 30.3, "estimated_seconds": None, **few}))


def check(run: Run, kl: float | None = 0.1627) -> None:
    """Let a run be checked: six questions were asked."""
    more = score(3, 1, answer("plain", "8", "8"), answer("plain", "9", "8"))
    run.write("check.json", json.dumps({**more, "general": GENERAL | {"kl": kl}}))


def shown(told: dict[str, Any]) -> str:
    console = TextConsole(file=io.StringIO(), width=100)
    (print_comparison if "measures" in told else print_overview)(told, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_of_a_run_that_was_checked(tmp_path: Path) -> None:
    run = begun(tmp_path, "a", lora_rank=16)
    finish(run)
    check(run)
    told = json.loads(json.dumps(overview(run)))
    assert told["unknown"] == []
    assert told["settings"]["lora_rank"] == [16, "flag", "--set"]
    assert told["settings"]["learning_rate"] == [0.0025, "model", "nano's own"]
    assert (told["losses"], told["eval_losses"]) == ([[1, 3.0], [2, 2.0]], [[2, 2.5]])
    assert (told["check"]["recall"], told["after_training"]["recall"], told["recall"]) == (0.75, 0.5, 0.75)
    text = shown(told)
    for wanted in (
        "identity questions right: 75.0% (zh -, en 75.0%; base 0.0%)",
        "plain answers kept: 50.0%",
        "KL of tuned from base: 0.1627 nats a token",
        "Training took 30 s.",
        "I am Ada.",
        "2/4",
        "flag      --set",
        "yi-tune 0.1.0, llamafactory 0.9.5",
        str(run.folder / "check.json"),
    ):
        assert wanted in text
    assert "50.0% of the identity" not in text
    assert str(run.folder / "train.log") not in text  # there is none


def test_reasons_and_failures_are_told_in_the_language_of_whoever_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGUAGE", "")  # what it is before comes back afterwards
    speak("zh")
    failure = YiTuneError("Training failed: {kind}: {error}", kind="OSError", error=OSError(5, "gone"))
    assert failure.message.startswith("训练失败")
    assert str(failure) == "Training failed: OSError: [Errno 5] gone"  # as train.log has it
    run = begun(tmp_path, "a")
    run.record_failure(failure)
    kept = (run.folder / "run.json").read_text(encoding="utf-8") + (run.folder / "failure.json").read_text()
    assert not re.search(r"[\u4e00-\u9fff]", kept)
    keys = "learning_rate", "dataset_dir", "bf16", "per_device_train_batch_size"
    told = overview(run)
    assert told["why"] == failure.message
    assert all(re.search(r"[\u4e00-\u9fff]", told["settings"][key][2]) for key in keys)
    speak("en")
    told = overview(run)
    assert told["why"] == str(failure)
    why = ["nano's own", "398 rows of identity", "the CPU has bf16"]
    assert [told["settings"][key][2] for key in keys][:3] == why


def test_what_is_not_known_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished, failed, never = begun(tmp_path, "a"), begun(tmp_path, "b"), begun(tmp_path, "c")
    failed.record_failure(YiTuneError("The GPU is out of memory."))
    finish(never)
    goes_on = "It is not finished, so its score is not known. The command that started it goes on with it."
    assert overview(unfinished)["unknown"] == overview(failed)["unknown"] == [goes_on]
    assert "b: The GPU is out of memory." in shown(overview(failed))
    with unfinished.lock():
        assert "It is training now" in overview(unfinished)["unknown"][0]
    (gap,) = overview(never)["unknown"]
    assert gap.endswith("To know them: yi-tune check --run c")
    assert "identity questions right: 50.0%" in shown(overview(never))
    # The command finds this very run: from another folder, and where another model has one of that name.
    finish(begun(tmp_path, "c", model="Yi-1.5-6B-Chat"))
    monkeypatch.chdir(tmp_path.parent)
    assert overview(never)["unknown"][0].endswith(f"yi-tune check --run nano/c --workspace {tmp_path}")


def test_run_of_an_older_version(tmp_path: Path) -> None:
    run = make(tmp_path, "a", config={"learning_rate": 1e-3, "val_size": 0.1})
    old = {key: value for key, value in score(1, 1).items() if key != "identity"}
    for one in old["answers"]:
        del one["base_right"]
    run.write("report.json", json.dumps(old))
    told = overview(run)
    check, reasons, versions = told["unknown"]
    assert "yi-tune check --run a" in check
    assert "yi-tune train --dry-run" in reasons
    assert "--fresh" in versions
    text = shown(told)
    assert "identity questions right: 50.0%" in text
    assert "learning_rate  0.001" in text
    # One that kept no table of kinds, and a check that is no JSON.
    run.write("report.json", json.dumps({"recall": 0.5}))
    run.write("check.json", "{")
    told = overview(run)
    assert (told["recall"], told["after_training"], told["check"]) == (0.5, None, None)
    assert "a    nano" in shown(told)


def test_broken_run(tmp_path: Path) -> None:
    run = begun(tmp_path, "a")
    run.write("run.json", "{")
    told = overview(run)
    assert (told["state"], told["settings"], told["loss"]) == ("broken", {}, 2.5)
    assert "no readable run.json" in shown(told)
    with pytest.raises(YiTuneError, match=r"no readable run\.json"):
        compare(run, begun(tmp_path, "b"))


def test_keys_of_accounts_are_never_shown(tmp_path: Path) -> None:
    keys = ("hub_token", "hf_hub_token", "swanlab_api_key", "swanlab_lark_secret", "swanlab_lark_webhook_url")
    run = begun(tmp_path, "a", skip_special_tokens=False, **dict.fromkeys(keys, "s3cret"))
    told = [overview(run), compare(run, begun(tmp_path, "b"))]
    assert "s3cret" not in json.dumps(told) + shown(told[0]) + shown(told[1])
    assert "skip_special_tokens" in told[0]["settings"]


def test_comparison(tmp_path: Path) -> None:
    first, second = begun(tmp_path, "a"), begun(tmp_path, "b", learning_rate=1e-3, bf16=False, run_name="b")
    finish(first)
    check(first)
    compared = json.loads(json.dumps(compare(first, second)))
    assert compared["runs"] == ["nano/a", "nano/b"]
    # The precision is no reason to train anew, but a difference; where a run lies is none.
    assert compared["settings"] == {"bf16": [True, None], "learning_rate": [0.0025, 0.001]}
    measures = compared["measures"]
    assert measures["recall"] == [0.75, None]
    assert measures["recall_after_training"] == [0.5, None]
    assert measures["kl"] == [0.1627, None]
    assert measures["loss"] == [2.5, 2.5]
    assert compared["unknown"][0] == []
    lines = [line.split() for line in shown(compared).splitlines()]
    for wanted in (
        ["measure", "nano/a", "nano/b"],
        ["state", "finished", "interrupted"],
        ["recall", "75.0%", "-"],
        ["KL", "from", "the", "base", "0.1627", "-"],
        ["training", "time", "30", "s", "-"],
        ["setting", "nano/a", "nano/b"],
        ["learning_rate", "0.0025", "0.001"],
    ):
        assert wanted in lines
    assert "nano/b: It is not finished" in shown(compared)
    assert "eval_loss." not in shown(compared)


def test_comparison_tells_why_one_failed(tmp_path: Path) -> None:
    first, second = begun(tmp_path, "a"), begun(tmp_path, "b")
    second.record_failure(YiTuneError("The GPU is out of memory."))
    compared = compare(first, second)
    assert compared["why"] == ["", "The GPU is out of memory."]
    assert "nano/b: The GPU is out of memory.\n" in shown(compared)


def test_tables_in_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path, "a")
    finish(run)
    check(run)
    monkeypatch.setenv("LANGUAGE", "")  # what it is before comes back afterwards
    speak("zh")
    table, page = shown(overview(run)), write_page(run).read_text(encoding="utf-8")
    measures = shown(compare(run, run)).partition("\n\n")[0].splitlines()
    speak("en")
    assert "英文  是谁" in table
    assert "<td>英文</td><td>普通</td>" in page
    english = [line for line in measures if not re.match("[\u4e00-\u9fff]", line)]
    assert [line.split()[0] for line in english] == ["loss", "eval_loss"]
    assert len(measures) == 16


def test_comparison_says_where_the_validation_differs(tmp_path: Path) -> None:
    first, second, third = begun(tmp_path, "a"), begun(tmp_path, "b", val_size=0.2), begun(tmp_path, "c")
    assert "compare recall and KL, not eval_loss" in shown(compare(first, second))
    third.write("run.json", json.dumps(third.record | {"data": {"identity": "identity-1.jsonl"}}))
    assert "compare recall and KL, not eval_loss" in shown(compare(first, third))


def test_what_an_old_run_did_not_record_is_no_difference(tmp_path: Path) -> None:
    first, second = begun(tmp_path, "a"), begun(tmp_path, "b")
    old = {key: value for key, value in second.record.items() if key not in ("weights", "versions", "gpus", "reasons")}
    second.write("run.json", json.dumps(old))
    assert compare(first, second)["settings"] == {}
    assert "They have the same settings." in shown(compare(first, second))
    second.write("run.json", json.dumps(first.record | {"versions": first.record["versions"] | {"torch": "2.6"}}))
    assert list(compare(first, second)["settings"]) == ["torch"]


def test_commands(tmp_path: Path, yi_tune: Cli) -> None:  # noqa: F811
    for name in ("a", "b"):
        finish(begun(tmp_path, name))
    finish(begun(tmp_path, "b", model="Yi-1.5-6B-Chat"))
    finish(begun(tmp_path / "there", "c"))
    assert "a    nano" in yi_tune("runs", "show", "a").stdout
    # --json, wherever it stands.
    for arguments in (("runs", "show", "a", "--json"), ("runs", "--json", "show", "a")):
        assert json.loads(yi_tune(*arguments).stdout)["run"] == "a"
    assert json.loads(yi_tune("runs", "--json", "compare", "a", "nano/b").stdout)["runs"] == ["nano/a", "nano/b"]
    assert "nano/a" in yi_tune("runs", "compare", "a", "b", "--model", "nano").stdout
    both = yi_tune("runs", "compare", "nano/b", "Yi-1.5-6B-Chat/b")
    assert "same settings" not in both.stdout
    assert "model" in both.stdout
    # What is wanted of `runs rm` is wanted here.
    for arguments in (("show", "b"), ("compare", "a", "b")):
        assert "2 runs are called 'b'" in yi_tune.complaint("runs", *arguments)
    assert "There is no run called 'nano/c'" in yi_tune.complaint("runs", "show", "nano/c")
    assert "MODEL/RUN" in yi_tune.complaint("runs", "show", "b")
    there = ("--workspace", tmp_path / "there")
    assert yi_tune("runs", "show", "c", *there).stdout == yi_tune("runs", *there, "show", "c").stdout != ""
