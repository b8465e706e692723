"""The doctor's verdicts; what torch says is given, as of other machines. For real: tests/e2e/test_fit.py."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.hubs.machine import NOBODY
from tests.test_hardware import TWO, nvidia_smi
from yi_tune import doctor
from yi_tune.cli import app
from yi_tune.doctor import Diagnosis, diagnose
from yi_tune.errors import YiTuneError

CPU = {"gpu": None, "bf16": True, "free": 20_000_000_000}
H200 = {"gpu": "NVIDIA H200", "bf16": True, "free": 140_000_000_000}
FINE = {"torch": "2.10.0+cu128", "cuda": "12.8", "used": CPU, "broken": {}}
YI = "yi-1.5-6b-chat"


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no hub, and a torch that works."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    probed(monkeypatch)
    monkeypatch.setattr(doctor, "cached", lambda model: None)
    hubs(monkeypatch, NOBODY)


def hubs(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Both hubs are at that address; their clients read theirs once."""
    for hub in ("HuggingFace", "ModelScope"):
        monkeypatch.setattr(f"yi_tune.hubs.{hub}.endpoint", address)


def probed(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda: FINE | found)


def wrong(diagnosis: Diagnosis) -> dict[str, tuple[str, str, str]]:
    """What is not ok, by name."""
    bad = [check for check in diagnosis.checks if check.verdict != "ok"]
    assert all(check.remedy for check in bad)
    return {check.name: (check.verdict, check.found, check.remedy) for check in bad}


def test_nano_trains_anywhere(tmp_path: Path) -> None:
    diagnosis = diagnose("nano", tmp_path)
    assert wrong(diagnosis) == {}
    assert diagnosis.can_train
    assert {"torch", "bitsandbytes", "llamafactory", "gpu", "memory", "workspace", "disk", "model"} <= {
        check.name for check in diagnosis.checks
    }


def test_yi_without_a_gpu(tmp_path: Path) -> None:
    diagnosis = diagnose(YI, tmp_path)
    assert not diagnosis.can_train
    verdict, found, remedy = wrong(diagnosis)["gpu"]
    assert (verdict, "no CUDA GPU" in found, "--model nano" in remedy) == ("error", True, True)


def test_yi_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"cat <<'END'\n{TWO}END")
    probed(monkeypatch, used=H200)
    diagnosis = diagnose(YI, tmp_path)
    gpu = next(check for check in diagnosis.checks if check.name == "gpu")
    assert gpu.verdict == "ok"
    for said in ("NVIDIA H200", "compute capability 9.0", "driver 570.86.10", "Tesla T4", "CUDA 12.8", "bf16"):
        assert said in gpu.found
    memory = next(check for check in diagnosis.checks if check.name == "memory")
    assert "140.0 GB of GPU memory free" in memory.found


@pytest.mark.parametrize(
    ("found", "hidden", "what", "remedy"),
    [
        ({}, None, "built for CUDA 12.8, which may want a newer driver", "--torch-backend=auto"),
        ({"torch": "2.10.0+cpu", "cuda": None}, None, "built without CUDA", "torch==2.10.0"),
        ({}, "", "CUDA_VISIBLE_DEVICES='' hides it", "unset CUDA_VISIBLE_DEVICES"),
        ({}, "-1", "CUDA_VISIBLE_DEVICES='-1' hides it", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_gpu_that_torch_does_not_see(
    found: Any, hidden: str | None, what: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo GPU-a, NVIDIA L4, 8.9, 23034, 22000, 470.82.01")
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    probed(monkeypatch, **found)
    verdict, said, mends = wrong(diagnose(YI, tmp_path))["gpu"]
    assert (verdict, "driver 470.82.01" in said, what in said, remedy in mends) == ("error", True, True, True)
    assert wrong(diagnose("nano", tmp_path))["gpu"][0] == "warning"


def test_gpu_with_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch, used=H200 | {"free": 4_000_000_000})
    verdict, said, remedy = wrong(diagnose(YI, tmp_path))["memory"]
    assert (verdict, "does not fit" in said) == ("error", True)
    assert "--model nano" in remedy


@pytest.mark.parametrize(
    ("broken", "name", "remedy"),
    [
        ({"torchaudio": "OSError: undefined symbol", "llamafactory.train.tuner": "OSError"}, "torch", "torchaudio=="),
        ({"bitsandbytes": "RuntimeError: no library"}, "bitsandbytes", "--reinstall-package bitsandbytes"),
        ({"llamafactory.train.tuner": "ImportError: x"}, "llamafactory", "llamafactory==0.9.5"),
    ],
)
def test_packages_that_do_not_load(
    broken: dict[str, str], name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(monkeypatch, broken=broken)
    diagnosis = diagnose("nano", tmp_path)
    assert not diagnosis.can_train
    # What fails because of the first is not named as well.
    assert list(wrong(diagnosis)) == [name]
    assert remedy in wrong(diagnosis)[name][2]
    assert next(iter(broken.values())) in wrong(diagnosis)[name][1]


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    diagnosis = diagnose("nano", tmp_path)
    assert wrong(diagnosis)["kernels"][0] == "warning"
    assert diagnosis.can_train


def test_workspace_disk_and_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    verdict, said, remedy = wrong(diagnose("nano", tmp_path / "file"))["workspace"]
    assert (verdict, "cannot be written" in said, "--workspace" in remedy) == ("error", True, True)
    assert diagnose("nano", tmp_path / "to" / "be").can_train

    monkeypatch.setattr(doctor, "free_ram", lambda: 2_000_000_000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=5_000_000_000))
    assert wrong(diagnose("nano", tmp_path)) == {}
    found = wrong(diagnose(YI, tmp_path))
    assert (found["disk"][0], "13.1 GB are needed" in found["disk"][1]) == ("error", True)
    assert found["cpu and ram"][0] == "warning"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=500_000_000))
    assert "disk" in wrong(diagnose("nano", tmp_path))


def test_hubs_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch, used=H200)
    found = {name: verdict for name, (verdict, _, _) in wrong(diagnose(YI, tmp_path)).items()}
    assert found == {"huggingface": "error", "modelscope": "error", "model": "warning"}
    # But the model is here.
    monkeypatch.setattr("yi_tune.models.LocalModel.downloaded", True)
    monkeypatch.setattr(doctor, "check_model", lambda local: None)
    diagnosis = diagnose(YI, tmp_path)
    assert {name: verdict for name, (verdict, _, _) in wrong(diagnosis).items()} == {
        "huggingface": "warning",
        "modelscope": "warning",
    }
    assert diagnosis.can_train


def test_a_hub_that_answers_anything_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it knows no method
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("yi_tune.hubs.ModelScope.endpoint", f"http://127.0.0.1:{server.server_port}")
        found = wrong(diagnose(YI, tmp_path))
        server.shutdown()
    assert found["huggingface"][0] == "warning"
    assert "modelscope" not in found


@pytest.mark.parametrize("script", ["import os; os._exit(11)", "raise SystemExit", "print('no json')"])
def test_probe_that_dies(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(python))
    monkeypatch.setattr(doctor, "cached", lambda model: None)
    diagnosis = diagnose("nano", tmp_path)
    assert list(wrong(diagnosis)) == ["torch"]
    assert "ends Python" in wrong(diagnosis)["torch"][1]


def test_command(tmp_path: Path) -> None:
    cli = CliRunner()
    done = cli.invoke(app, ["doctor", "--workspace", str(tmp_path)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok      torch") for line in lines)
    assert any(line.startswith("error   gpu") for line in lines)
    assert lines[-1] == f"{YI} cannot be trained here yet."
    done = cli.invoke(app, ["doctor", "--model", "nano", "--workspace", str(tmp_path), "--json"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed.keys() == {"can_train", "model", "machine", "checks"}
    assert printed["machine"].keys() == {"gpus", "used", "torch", "cuda", "cores", "ram_free", "disk_free"}
    assert printed["checks"][0].keys() == {"name", "verdict", "found", "remedy"}
    assert isinstance(cli.invoke(app, ["doctor", "--model", "nanoo"]).exception, YiTuneError)
