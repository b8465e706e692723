import os
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from yi_tune.hardware import Hardware, cpu_has_bf16, detect, free_ram, read_gpus

TWO = """\
GPU-aaaa, NVIDIA H200, 143771 MiB, 1000 MiB, 570.86.10
GPU-bbbb, Tesla T4, 15360 MiB, 15000 MiB, 570.86.10
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
    assert list(first.values()) == ["GPU-aaaa", "NVIDIA H200", "143771 MiB", "1000 MiB", "570.86.10"]
    assert second["name"] == "Tesla T4"
    # The one with the most memory free is chosen.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    detect()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"


@pytest.mark.parametrize(
    "script", ["echo No devices were found", "echo GPU-a, Thing, [N/A], [N/A], 550", "exit 9", "echo"]
)
def test_no_gpus(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    assert read_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert read_gpus() == []


@pytest.mark.parametrize(
    ("features", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni avx512_bf16 amx_tile", True),
        ("Features\t: fp asimd sve bf16 i8mm", True),
        ("flags\t\t: fpu avx512f avx512_vnni amx_tile", False),
    ],
)
def test_bf16_of_a_cpu(features: str, has: bool, tmp_path: Path) -> None:
    assert not cpu_has_bf16(tmp_path / "none")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{features}\n")
    assert cpu_has_bf16(tmp_path / "cpuinfo") == has


@pytest.mark.parametrize(
    ("gpu", "bf16", "settings"),
    [
        ("GPU", True, (True, False, "auto")),
        ("GPU", False, (False, True, "auto")),
        (None, True, (True, False, "auto")),
        (None, False, (False, False, "disabled")),
    ],
)
def test_settings_are_the_machines(gpu: str | None, bf16: bool, settings: tuple[bool, bool, str]) -> None:
    decided = Hardware(gpu, bf16, 0).settings
    assert tuple(value for value, _ in decided.values()) == settings
    assert ("has bf16" in decided["bf16"][1]) == bf16


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
