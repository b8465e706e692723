"""The doctor's verdicts; what torch says is given, as of other machines."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tests.hubs.machine import NOBODY
from tests.plans import CPU
from tests.test_hardware import TWO, nvidia_smi
from yi_tune import doctor
from yi_tune.cli import app
from yi_tune.doctor import diagnose
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware

H200 = Hardware("NVIDIA H200", bf16=True, free=140_000_000_000)
YI = "yi-1.5-6b-chat"
PACKAGES = doctor._packages


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no hub, and a torch that works."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    used(monkeypatch, CPU)
    monkeypatch.setattr(doctor, "cached", lambda model: None)
    for hub in ("HuggingFace", "ModelScope"):  # their clients read theirs once
        monkeypatch.setattr(f"yi_tune.hubs.{hub}.endpoint", NOBODY)


def used(monkeypatch: pytest.MonkeyPatch, hardware: Hardware) -> None:
    monkeypatch.setattr(doctor, "_packages", lambda: doctor._check("packages", "all of them"))
    monkeypatch.setattr(doctor, "detect", lambda: hardware)


def wrong(workspace: Path, model: str = YI) -> dict[str, tuple[str, str, str]]:
    """What is not ok, by name: verdict, finding, remedy."""
    bad = [check for check in diagnose(model, workspace) if check["verdict"] != "ok"]
    assert all(check["remedy"] for check in bad)
    return {check["name"]: (check["verdict"], check["found"], check["remedy"]) for check in bad}


def test_nano_trains_anywhere_and_yi_needs_a_gpu(tmp_path: Path) -> None:
    assert wrong(tmp_path / "to" / "be", "nano") == {}
    assert [check["name"] for check in diagnose("nano", tmp_path)] == ["packages", "gpu", "memory", "model", "disk"]
    verdict, found, remedy = wrong(tmp_path)["gpu"]
    assert (verdict, "no CUDA GPU" in found, "--model nano" in remedy) == ("error", True, True)


def test_yi_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"cat <<'END'\n{TWO}END")
    used(monkeypatch, H200)
    assert "gpu" not in wrong(tmp_path)
    found = {check["name"]: check["found"] for check in diagnose(YI, tmp_path)}
    for said in ("NVIDIA H200", "driver 570.86.10", "Tesla T4", "trains in bf16"):
        assert said in found["gpu"]
    assert "140.0 GB of GPU memory free" in found["memory"]
    used(monkeypatch, replace(H200, free=4_000_000_000))
    _, said, remedy = wrong(tmp_path)["memory"]
    assert ("does not fit" in said, "--model nano" in remedy) == (True, True)


def test_gpu_that_is_too_old_is_told_of_before_llamafactory_starts_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def detect() -> Hardware:
        asked.append("which GPU")
        raise YiTuneError("A P100 is too old.", "Take another build.")

    monkeypatch.setattr(doctor, "detect", detect)
    assert wrong(tmp_path)["gpu"] == ("error", "A P100 is too old.", "Take another build.")
    monkeypatch.setattr(doctor.importlib, "import_module", asked.append)
    doctor.probe()
    assert asked == ["which GPU"] * 2 + ["torchvision", "torchaudio", "llamafactory.train.tuner"]


@pytest.mark.parametrize(("hidden", "remedy"), [(None, "Update the driver"), ("", "unset CUDA_VISIBLE_DEVICES")])
def test_gpu_that_torch_does_not_see(
    hidden: str | None, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo GPU-a, NVIDIA L4, 23034 MiB, 22000 MiB, 470.82.01")
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    verdict, found, mends = wrong(tmp_path)["gpu"]
    assert (verdict, "driver 470.82.01, but torch sees none" in found, remedy in mends) == ("error", True, True)
    assert wrong(tmp_path, "nano")["gpu"][0] == "warning"


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    verdict, said, remedy = wrong(tmp_path / "file", "nano")["disk"]
    assert (verdict, "0 bytes can be written" in said, "--workspace" in remedy) == ("error", True, True)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=5_000_000_000))
    assert wrong(tmp_path, "nano") == {}
    assert "13.1 GB are needed" in wrong(tmp_path)["disk"][1]


def test_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used(monkeypatch, H200)
    assert {name: verdict for name, (verdict, _, _) in wrong(tmp_path).items()} == {"hub": "error", "model": "warning"}
    with monkeypatch.context() as patch:
        patch.setenv("ALL_PROXY", "socks4://127.0.0.1:9")
        assert wrong(tmp_path)["hub"][1].startswith("ALL_PROXY names")
    monkeypatch.setattr("httpx.head", lambda url, timeout: None)  # whatever it answers
    assert wrong(tmp_path).keys() == {"model"}
    # And the model is here.
    monkeypatch.setattr("yi_tune.models.LocalModel.downloaded", True)
    monkeypatch.setattr(doctor, "check_model", lambda local: None)
    assert wrong(tmp_path) == {}


@pytest.mark.parametrize(
    ("script", "said"), [("import os; os._exit(11)", "status 11"), ("import torch", "ImportError: undefined symbol")]
)
def test_packages_that_do_not_load(script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    (tmp_path / "torch.py").write_text("raise ImportError('undefined symbol')")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec "{sys.executable}" -c "{script}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(doctor.sys, "executable", str(python))
    monkeypatch.setattr(doctor, "_packages", PACKAGES)
    found = wrong(tmp_path, "nano")
    assert list(found) == ["packages"]
    verdict, why, remedy = found["packages"]
    assert (verdict, said in why, "torchaudio==" in remedy) == ("error", True, True)


def test_command(tmp_path: Path) -> None:
    cli = CliRunner()
    done = cli.invoke(app, ["doctor", "--workspace", str(tmp_path)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok      packages") for line in lines)
    assert any(line.startswith("error   gpu") for line in lines)
    assert lines[-1] == f"{YI} cannot be trained here yet."
    done = cli.invoke(app, ["doctor", "--model", "nano", "--workspace", str(tmp_path), "--json"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert (printed["can_train"], printed["model"]) == (True, "nano")
    assert printed["checks"][0].keys() == {"name", "verdict", "found", "remedy"}
    assert isinstance(cli.invoke(app, ["doctor", "--model", "nanoo"]).exception, YiTuneError)
