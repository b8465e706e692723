"""The doctor's verdicts; what torch says is given, as of other machines."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from typer.testing import CliRunner

from tests.hubs.machine import NOBODY
from tests.test_hardware import TWO, nvidia_smi
from yi_tune import doctor
from yi_tune.cli import app
from yi_tune.doctor import diagnose
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware

CPU = {"gpu": None, "bf16": True, "free": 20_000_000_000}
H200 = {"gpu": "NVIDIA H200", "bf16": True, "free": 140_000_000_000}
FINE = {"checks": [], "cuda": "12.8", "used": CPU}
YI = "yi-1.5-6b-chat"
PROBE = doctor._probe


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no hub, and a torch that works."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    probed(monkeypatch)
    monkeypatch.setattr(doctor, "cached", lambda model: None)
    for hub in ("HuggingFace", "ModelScope"):  # their clients read theirs once
        monkeypatch.setattr(f"yi_tune.hubs.{hub}.endpoint", NOBODY)


def probed(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda: FINE | found)


def found_in(workspace: Path, model: str = YI) -> dict[str, str]:
    """The findings, by name."""
    return {check["name"]: check["found"] for check in diagnose(model, workspace)}


def wrong(workspace: Path, model: str = YI) -> dict[str, tuple[str, str, str]]:
    """What is not ok, by name: verdict, finding, remedy."""
    bad = [check for check in diagnose(model, workspace) if check["verdict"] != "ok"]
    assert all(check["remedy"] for check in bad)
    return {check["name"]: (check["verdict"], check["found"], check["remedy"]) for check in bad}


def test_nano_trains_anywhere(tmp_path: Path) -> None:
    assert wrong(tmp_path / "to" / "be", "nano") == {}
    assert list(found_in(tmp_path, "nano")) == ["gpu", "memory", "disk", "model"]


def test_yi_without_a_gpu(tmp_path: Path) -> None:
    verdict, found, remedy = wrong(tmp_path)["gpu"]
    assert (verdict, "no CUDA GPU" in found, "--model nano" in remedy) == ("error", True, True)


def test_yi_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"cat <<'END'\n{TWO}END")
    probed(monkeypatch, used=H200)
    assert "gpu" not in wrong(tmp_path)
    found = found_in(tmp_path)
    for said in ("NVIDIA H200", "driver 570.86.10", "Tesla T4", "CUDA 12.8", "bf16"):
        assert said in found["gpu"]
    assert "140.0 GB of GPU memory free" in found["memory"]


@pytest.mark.parametrize(
    ("cuda", "hidden", "said", "remedy"),
    [
        ("12.8", None, "torch for CUDA 12.8 sees none", "Update the driver"),
        (None, None, "torch for the CPU sees none", "--torch-backend=auto"),
        ("12.8", "", "sees none", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_gpu_that_torch_does_not_see(
    cuda: str | None, hidden: str | None, said: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo GPU-a, NVIDIA L4, 23034 MiB, 22000 MiB, 470.82.01")
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    probed(monkeypatch, cuda=cuda)
    verdict, found, mends = wrong(tmp_path)["gpu"]
    assert (verdict, "driver 470.82.01" in found, said in found, remedy in mends) == ("error", True, True, True)
    assert wrong(tmp_path, "nano")["gpu"][0] == "warning"


def test_gpu_with_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch, used=H200 | {"free": 4_000_000_000})
    verdict, said, remedy = wrong(tmp_path)["memory"]
    assert (verdict, "does not fit" in said, "--model nano" in remedy) == ("error", True, True)


@pytest.mark.parametrize(
    ("package", "why", "remedy"),
    [
        ("torchaudio", OSError("undefined symbol"), "torchaudio=="),
        ("bitsandbytes", RuntimeError("no library"), "bitsandbytes=="),
        ("llamafactory", ImportError("x"), "llamafactory==0.9.5"),
    ],
)
def test_package_that_does_not_load(
    package: str, why: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(module: str) -> Any:
        if module.startswith(package):
            raise why
        return MagicMock(version=SimpleNamespace(cuda=None))

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    monkeypatch.setattr(doctor, "detect", lambda: Hardware(**CPU))
    doctor.probe()
    *good, bad = json.loads(capsys.readouterr().out)["checks"]
    # Packages after it, which may fail because of it, are not named.
    names = [*(check["name"] for check in good), bad["name"]]
    assert names == list(doctor._PACKAGES)[: len(names)]
    assert all(check["verdict"] == "ok" for check in good)
    assert (bad["name"], str(why) in bad["found"], remedy in bad["remedy"]) == (package, True, True)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    verdict, said, remedy = wrong(tmp_path / "file", "nano")["disk"]
    assert (verdict, "0 bytes can be written" in said, "--workspace" in remedy) == ("error", True, True)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=5_000_000_000))
    assert wrong(tmp_path, "nano") == {}
    assert "13.1 GB are needed" in wrong(tmp_path)["disk"][1]


def test_hubs_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch, used=H200)
    found = {name: verdict for name, (verdict, _, _) in wrong(tmp_path).items()}
    assert found == {"huggingface": "error", "modelscope": "error", "model": "warning"}
    # But the model is here.
    monkeypatch.setattr("yi_tune.models.LocalModel.downloaded", True)
    monkeypatch.setattr(doctor, "check_model", lambda local: None)
    assert wrong(tmp_path) == {}


def test_a_hub_that_answers_anything_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it knows no method
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("yi_tune.hubs.ModelScope.endpoint", f"http://127.0.0.1:{server.server_port}")
        found = wrong(tmp_path)
        server.shutdown()
    assert found["huggingface"][0] == "warning"
    assert "modelscope" not in found


@pytest.mark.parametrize("script", ["import os; os._exit(11)", "print('no json')"])
def test_probe_that_dies(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(python))
    monkeypatch.setattr(doctor, "_probe", PROBE)
    assert list(wrong(tmp_path, "nano")) == ["torch"]
    assert "ends Python" in wrong(tmp_path, "nano")["torch"][1]


def test_command(tmp_path: Path) -> None:
    cli = CliRunner()
    done = cli.invoke(app, ["doctor", "--workspace", str(tmp_path)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok      disk") for line in lines)
    assert any(line.startswith("error   gpu") for line in lines)
    assert lines[-1] == f"{YI} cannot be trained here yet."
    done = cli.invoke(app, ["doctor", "--model", "nano", "--workspace", str(tmp_path), "--json"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert (printed["can_train"], printed["model"]) == (True, "nano")
    assert printed["checks"][0].keys() == {"name", "verdict", "found", "remedy"}
    assert isinstance(cli.invoke(app, ["doctor", "--model", "nanoo"]).exception, YiTuneError)
