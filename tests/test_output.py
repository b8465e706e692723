import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rich.table import Table

from yi_tune.output import engine_output_to, err, log_folder, out, print_table

# Every way to write there is; `kept` marks what the user is to see.
TALK = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from yi_tune.output import engine_output_to

print("kept before")
log = Path("deeper") / "train.log"
logging.basicConfig()
try:
    with engine_output_to(log) as console:
        print("hidden print 你好")
        print("hidden stderr", file=sys.stderr)
        print("hidden unflushed", end="")
        os.write(1, b"hidden write 1\\n")
        os.write(2, b"hidden write 2\\n")
        subprocess.run(["sh", "-c", "echo hidden child; echo hidden child error >&2"])
        logging.warning("hidden logging")
        warnings.warn("hidden warning")
        console.print("kept console :cat:")
        if "fail" in sys.argv:
            raise ZeroDivisionError
except ZeroDivisionError:
    print("kept failure")
print("kept after")
print("kept error", file=sys.stderr)
subprocess.run(["sh", "-c", "echo kept child"])
"""
HIDDEN = ["print 你好", "stderr", "unflushed", "write 1", "write 2", "child\n", "child error", "logging", "warning"]


@pytest.mark.parametrize("how", ["succeed", "fail"])
def test_engine_output_goes_to_the_log(tmp_path: Path, how: str) -> None:
    # Its streams buffer: what was written before must not land in the log, nor what is written within outside it.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-X", "utf8", "-c", TALK, how]
    done = subprocess.run(command, env=buffered, capture_output=True, encoding="utf-8", check=True)
    failure = ["kept failure"] if how == "fail" else []
    assert sorted(done.stdout.splitlines()) == ["kept after", "kept before", "kept child", *failure]
    assert done.stderr.splitlines() == ["kept console :cat:", "kept error"]
    log = (tmp_path / "deeper" / "train.log").read_text(encoding="utf-8")
    for hidden in HIDDEN:
        assert f"hidden {hidden}" in log
    assert "kept" not in log


def test_log_goes_on_and_descriptors_are_given_back(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("first leg\n")
    counts = []
    for _ in range(3):
        with engine_output_to(log):
            pass
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(set(counts)) == 1
    assert log.read_text() == "first leg\n"


def test_log_folder_is_the_users_or_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert log_folder() == tmp_path / "config" / "yi-tune"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert log_folder().parent == tmp_path
    assert log_folder().is_dir()


def test_question_in_the_log_finds_no_terminal() -> None:
    code = """if True:
        import os, sys
        from pathlib import Path
        from yi_tune.output import engine_output_to
        with engine_output_to(Path("log")):
            try:
                input("Your key? ")
            except EOFError:
                pass
        print(input())
    """
    done = subprocess.run([sys.executable, "-c", code], input="mine\n", capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("mine\n", "")
    assert Path("log").read_text() == "Your key? "


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]:cat: \\[x]" + " long" * 100
    out.print(text)
    err.print(text)
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")
    out.print(Table("name :dog:"))
    assert ":dog:" in capsys.readouterr().out


def test_columns_are_aligned_in_cells(capsys: pytest.CaptureFixture[str]) -> None:
    # A Chinese character takes two cells of a terminal, and no cell is cut or wrapped.
    print_table(out, [("name", "n", "what"), ("小易", "10", "[bold]" + "x" * 200), ("-", "", "")], right=(1,))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name   n  what", "小易  10  [bold]" + "x" * 200, "-"]
    # A cell wider than `most` runs over, and the others stay where they are.
    print_table(out, [("键", "值", "why"), ("path", "x" * 9, "a"), ("n", "1234", "b")], most=8)
    assert capsys.readouterr().out.splitlines() == ["键    值    why", f"path  {'x' * 9}  a", "n     1234  b"]
