import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware, cpu_has_bf16, detect, free_ram, read_gpus
from yi_tune.language import told

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


def cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (7, 5), free: int = 15_000_000_000) -> None:
    """A torch that sees a GPU, built as 2.10's from PyPI is."""
    known = {
        "is_available": lambda: True,
        "get_device_name": lambda: "A GPU",
        "get_device_capability": lambda: capability,
        "get_arch_list": lambda: ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        "is_bf16_supported": lambda *, including_emulation: capability >= (8, 0),
        "mem_get_info": lambda: (free, 16_000_000_000),
    }
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(**known)))


@pytest.mark.parametrize(
    ("listed", "used"), [("2,5", "5"), ("GPU-aaaa, GPU-bbbb", "GPU-bbbb"), (None, "1"), ("3", "3"), ("", "")]
)
def test_one_gpu_is_used_the_freest(
    listed: str | None,
    used: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"cat <<'END'\n{TWO}END")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed or "")
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    cuda(monkeypatch)
    # What another process sees there; it is asked before this one starts CUDA.
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\necho '[[1000000000, "A GPU"], [15000000000, "A GPU"]]'\n""")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert detect().free == 15_000_000_000
    assert os.environ["CUDA_VISIBLE_DEVICES"] == used
    said = f"GPU {used} of 2 is used: it has the most memory free, 15.0 GB." if used not in ("3", "") else ""
    assert said in capsys.readouterr().err


def seen(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: str) -> None:
    """Another process sees these GPUs."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\necho '{gpus}'\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize(
    ("gpus", "listed", "used"),
    [(2, None, "2,0"), (None, None, "2,0,1"), (2, "5,GPU-b,7", "7,5"), (3, "5,6,7", "7,5,6")],
)
def test_several_gpus_are_the_freest_and_this_process_sees_one(
    gpus: int | None, listed: str | None, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed or "")
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    cuda(monkeypatch, free=15_500_000_000)
    seen(tmp_path, monkeypatch, '[[15000000000, "A GPU"], [1000000000, "A GPU"], [16000000000, "A GPU"]]')
    found = detect(gpus=gpus)
    count = used.count(",") + 1
    assert (found.count, found.visible) == (count, used)
    assert found.free == (1_000_000_000 if count == 3 else 15_000_000_000)  # what the fullest of them has
    assert os.environ["CUDA_VISIBLE_DEVICES"] == used.split(",")[0]


@pytest.mark.parametrize(
    ("gpus", "there", "told"),
    [
        (3, '[[2, "A GPU"], [1, "A GPU"]]', "--gpus 3: torch sees 2 GPUs."),
        (2, '[[2, "A GPU"]]', "--gpus 2: torch sees 1 GPU."),
        (None, "[]", "--gpus all: torch sees no GPU."),
        (None, '[[2, "H200"], [1, "T4"]]', "The GPUs differ: 0 is a H200, 1 is a T4."),
    ],
)
def test_several_gpus_that_are_not_there_or_not_alike(
    gpus: int | None, there: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen(tmp_path, monkeypatch, there)
    with pytest.raises(YiTuneError, match=re.escape(told)):
        detect(gpus=gpus)


def test_processes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cuda(monkeypatch)
    monkeypatch.setattr(sys.modules["torch"].cuda, "is_available", lambda: False)
    monkeypatch.setattr("yi_tune.hardware.free_ram", lambda: 12)
    two = detect(cpu_only=True, gpus=2)
    assert (two.gpu, two.free, two.count) == (None, 6, 2)


def test_gpus_that_torch_cannot_ask_about_stay_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cuda(monkeypatch)
    monkeypatch.setattr(sys, "executable", "false")
    detect()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(("capability", "fits"), [((6, 0), False), ((7, 5), True), ((8, 9), True), ((13, 0), False)])
def test_age_of_a_gpu(capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    cuda(monkeypatch, capability)
    if fits:
        assert detect().gpu == "A GPU"
        return
    with pytest.raises(YiTuneError, match=re.escape(f"compute capability {capability[0]}.{capability[1]}")) as told:
        detect()
    assert ("=cu126" in told.value.hint) == (capability == (6, 0))


def test_amd_gpus_are_named_by_another_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    cuda(monkeypatch, (9, 0))
    monkeypatch.setattr(sys.modules["torch"].cuda, "get_arch_list", lambda: ["gfx90a", "gfx942"])
    assert detect().gpu == "A GPU"


@pytest.mark.parametrize("script", ["echo No devices were found", "echo GPU-a, Thing, [N/A], [N/A], 550", "exit 9"])
def test_no_gpus(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    assert read_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert read_gpus() == []


@pytest.mark.parametrize(
    ("features", "has"),
    [("fpu avx512_bf16 amx_tile", True), ("asimd sve bf16 i8mm", True), ("avx512f avx512_vnni amx_tile", False)],
)
def test_bf16_of_a_cpu(features: str, has: bool, tmp_path: Path) -> None:
    assert not cpu_has_bf16(tmp_path / "none")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {features}\n")
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
    assert ("has bf16" in told(decided["bf16"][1])) == bf16


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
