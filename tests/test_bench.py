"""What measures must not hang, nor call a failure a figure."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from bench import gpu, train
from bench.train import CommandError, Measured, OutOfTimeError, measure


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
    assert measure(python("")).loop is None


def test_failed_command_says_what_it_said() -> None:
    with pytest.raises(CommandError, match="no such thing"):
        measure(python("raise SystemExit('no such thing')"))


def test_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(OutOfTimeError):
        measure(["sh", "-c", f"sleep 300 & echo $! > '{pid_file}'; wait"], limit=1)
    state = Path(f"/proc/{int(pid_file.read_text())}/stat")
    deadline = time.monotonic() + 30
    while state.exists() and " Z " not in state.read_text() and time.monotonic() < deadline:
        os.sched_yield()
    assert not state.exists() or " Z " in state.read_text()


def run_bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """bench/gpu.py on a machine without a GPU; returns its exit status."""
    monkeypatch.setattr(gpu, "gpu", lambda figure: "")
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return int(ended.value.code or 0)


def test_failing_step_is_reported_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        gpu.Step("good", lambda left: measure(python(""), limit=left)),
        gpu.Step("bad", lambda left: measure(python("raise SystemExit('broken | here')"), limit=left)),
        gpu.Step("late", lambda left: measure(python("import time; time.sleep(300)"), limit=min(left, 1))),
        gpu.Step("last", lambda left: Measured(1.5, 2.25, 1.0, 1234.0, 0.25)),
    ]
    monkeypatch.setattr(gpu, "steps", lambda *_: steps)
    page = gpu.PAGE.exists()
    assert run_bench(monkeypatch, "--shape", "tiny") == 1
    out = capsys.readouterr().out
    rows = json.loads(out.splitlines()[-1])
    assert [row["outcome"].split(":")[0] for row in rows] == ["done", "failed", "no time left", "done"]
    assert "broken" in rows[1]["outcome"]
    assert "| last | done | 1.5 | 1.0 | 1234 | 2.25 GiB |  | 0.2500 |" in out
    assert {line.count("|") for line in out.splitlines() if line.startswith("| ")} == {9}
    # What was tried on a CPU is no page of docs/.
    assert gpu.PAGE.exists() == page
    # When the time is over no step begins.
    assert run_bench(monkeypatch, "--shape", "tiny", "--minutes", "0") == 0
    assert {row["outcome"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])} == {"no time left"}
    # And a large model takes a GPU.
    assert run_bench(monkeypatch) == 2
    assert "--shape tiny" in capsys.readouterr().err


def test_every_step_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "gpu", lambda figure: "NVIDIA H200")
    monkeypatch.setattr(gpu, "find_spec", lambda module: True)
    names = [step.name for step in gpu.steps("yi-1.5-6b", 2, 10, tmp_path)]
    assert len(set(names)) == len(names)
    for wanted in ("build", train.OURS, train.THEIRS, "micro-batch 1", "chat", "enable_liger_kernel"):
        assert any(wanted in name for name in names), wanted
