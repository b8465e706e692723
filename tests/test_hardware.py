from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from yi_tune.planning.hardware import free_ram, read_gpus

TWO = """\
GPU-aaaa, NVIDIA H200, 9.0, 143771, 1000, 570.86.10
GPU-bbbb, Tesla T4, 7.5, 15360, 15000, 570.86.10
"""


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program of that name which does that, first on the PATH."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"cat <<'END'\n{TWO}END")
    first, second = read_gpus()
    assert (first.uuid, first.name, first.capability, first.driver) == ("GPU-aaaa", "NVIDIA H200", (9, 0), "570.86.10")
    assert (first.total, first.free) == (143771 * 2**20, 1000 * 2**20)
    assert second.capability == (7, 5)


@pytest.mark.parametrize(
    "script", ["echo No devices were found", "echo GPU-a, Thing, [N/A], [N/A], [N/A], 550", "exit 9", "echo"]
)
def test_no_gpus(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    assert read_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert read_gpus() == []


def test_ram_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a machine and a process in which nothing else goes on.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000_000_000))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=70_000_000))
    assert free_ram(tmp_path) == 20_070_000_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400000000\n")
    assert free_ram(tmp_path) == 20_070_000_000
    (tmp_path / "memory.max").write_text("1000000000\n")
    # Half of the limit, and what this process has of it.
    assert free_ram(tmp_path) == 570_000_000
