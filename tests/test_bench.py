"""What measures must not hang, nor call a failure a figure, nor lose what it has measured."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from bench import gpu, train
from bench.pages import DOCS, ROOT
from bench.train import CommandError, Measured, measure


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_measured_command(tmp_path: Path) -> None:
    figures = {"train_runtime": 2.0, "effective_tokens_per_sec": 300.0, "train_loss": 0.5}
    (tmp_path / "all_results.json").write_text(json.dumps(figures))
    held = bytearray(b"x" * 400_000_000)
    measured = measure(python("import time; x = b'x' * 200_000_000; time.sleep(0.3)"), tmp_path)
    assert (measured.loop, measured.tokens, measured.loss) == (2.0, 300.0, 0.5)
    assert measured.seconds >= 0.3
    # The command's own memory, whatever the process holds that started it.
    assert 0.18 <= measured.memory < 0.3 < len(held) / 1e9
    assert 0.18 <= measured.anonymous < measured.memory
    asked = measure(python("print(input())"), stdin="what it is asked\n")
    assert (asked.loop, asked.said) == (None, "what it is asked")


def test_failed_command_has_the_end_of_what_it_said_and_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)) + "\nno kernel image\n")
    with pytest.raises(CommandError, match="status 1") as failed:
        measure(python(f"print('many\\n' * 50); raise SystemExit('The whole story is in {log}')"))
    lines = failed.value.log.splitlines()
    assert len(lines) == 30
    assert (lines[14], lines[-1]) == (f"The whole story is in {log}", "no kernel image")


def run_bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """bench/gpu.py on a machine without a GPU; returns its exit status."""
    monkeypatch.setattr(gpu, "gpu", lambda figure: "")
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return int(ended.value.code or 0)


def has_ended(process: int) -> bool:
    """Whether a process goes within half a minute, or waits to be reaped."""
    state, deadline = Path(f"/proc/{process}/stat"), time.monotonic() + 30
    while state.exists() and " Z " not in state.read_text() and time.monotonic() < deadline:
        os.sched_yield()
    return not state.exists() or " Z " in state.read_text()


def test_failing_steps_are_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child = tmp_path / "pid"

    def hang(left: float) -> Measured:
        return measure(["sh", "-c", f"echo at work; sleep 300 & echo $! > '{child}'; wait"], limit=left)

    def not_done_before() -> float:
        return float(Path("train.yaml").read_text())

    steps = [
        gpu.Step("good", partial(measure, python(""), None)),
        gpu.Step("bad", partial(measure, python("raise SystemExit('broken | here')"), None)),
        gpu.Step("hangs", hang),
        gpu.Step("no estimate", lambda left: Measured(3.5, 1.0), not_done_before),
        gpu.Step("last", lambda left: Measured(1.5, 2.25, 1.0, 1234.0, 0.25), lambda: 2.5),
    ]
    monkeypatch.setattr(gpu, "steps", lambda *_: steps)
    monkeypatch.setattr(gpu, "STEP_SECONDS", 1)
    out = tmp_path / "out"
    assert run_bench(monkeypatch, "--shape", "tiny", "--out", str(out)) == 1
    rows = json.loads((out / "bench-gpu.json").read_text())
    assert [row["outcome"].split(":")[0] for row in rows] == ["done", "failed", "failed", "failed", "done"]
    page = (out / "bench-gpu.md").read_text()
    for line in ("broken | here", "at work", "FileNotFoundError", "| no estimate | failed | 3.5 |"):
        assert line in page
    assert "| last | done | 1.5 | 1.0 | 1234 | 2.25 | 2.50 | 0.2500 |" in page
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in table} == {9}
    assert table[-1] in capsys.readouterr().out
    assert has_ended(int(child.read_text()))


def test_time_that_is_over(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "bench-gpu.md"
    before = page.exists()
    assert run_bench(monkeypatch, "--shape", "tiny", "--minutes", "0") == 0
    assert "| yi-tune train | no time left |" in capsys.readouterr().out
    assert page.exists() == before  # what was tried on a CPU is no page of docs/
    assert run_bench(monkeypatch) == 2
    assert "--shape tiny" in capsys.readouterr().err


KILLED = """
from bench import gpu
from bench.train import Measured
from functools import partial
asleep = ["sh", "-c", "sleep 1; echo $$ > pid; exec sleep 300"]
gpu.gpu = lambda figure: ""
first, second = gpu.Step("first", lambda left: Measured(1, 2)), gpu.Step("second", partial(gpu.measure, asleep, None))
gpu.steps = lambda *_: [first, second]
gpu.main()
"""


def test_killed_run_has_written_what_it_measured(tmp_path: Path) -> None:
    command = [*python(KILLED), "--shape", "tiny", "--out", str(tmp_path)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    pid, deadline = tmp_path / "pid", time.monotonic() + 60
    while not (pid.exists() and pid.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) != 0
    assert "| first | done | 1.0 |" in (tmp_path / "bench-gpu.md").read_text()
    assert [row["outcome"] for row in json.loads((tmp_path / "bench-gpu.json").read_text())] == ["done"]
    assert not Path(f"/proc/{int(pid.read_text())}").exists()


def test_steps_have_names_of_their_own_and_what_decides_most_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "gpu", lambda figure: "NVIDIA H200")
    monkeypatch.setattr(gpu, "find_spec", lambda module: True)
    names = [step.name for step in gpu.steps("yi-1.5-6b", 2, 10, tmp_path)]
    assert len(set(names)) == len(names)
    rest = iter(names)
    for wanted in ("nano: yi-tune train", "build", train.OURS, train.THEIRS, gpu.THEIR_CHAT, "round 2"):
        assert any(wanted in name for name in rest), wanted


def test_page_of_figures() -> None:
    ours, theirs = (Measured(seconds, 1.5, seconds / 2, 300.0, loss) for seconds, loss in ((20.0, 0.4), (50.0, 0.5)))
    lines = train.page("nano", [(ours, theirs)] * 3, ["| a profile |"])
    assert "Ratio of the medians: **0.40**. The losses are 20.00% apart." in lines
    assert "| yi-tune train | 20.0, 20.0, 20.0 | 20.0 | 10.0 | 300 | 1.50 GiB | 0.4000 |" in lines
    assert lines[-1] == "| a profile |"
