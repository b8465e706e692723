from pathlib import Path
from typing import Any

import pytest

from yi_tune.data.identity import Identity
from yi_tune.hardware import Hardware
from yi_tune.models import LocalModel, Model
from yi_tune.plan import speedups
from yi_tune.plan.memory import Fit
from yi_tune.plan.plan import Setting, TrainPlan
from yi_tune.runs.folder import Run

GPU, CPU = Hardware("NVIDIA H200", bf16=True, free=1), Hardware(None, bf16=True, free=1)


def plan(**config: Any) -> TrainPlan:
    settings = tuple(Setting(key, value, "flag", "--set") for key, value in config.items())
    local, fit = LocalModel(Model("m", "m"), Path("/m")), Fit(8, 1, False, CPU)
    return TrainPlan(settings, local, Identity("小易", "李雷"), (), Run(Path("/r")), fit)


ASKED = {"enable_liger_kernel": True, "flash_attn": "fa2", "use_unsloth": True, "cutoff_len": 512}


@pytest.mark.parametrize(
    ("hardware", "there", "why"), [(GPU, False, "is not installed"), (CPU, True, "needs a GPU")], ids=["gpu", "cpu"]
)
def test_goes_without_what_cannot_work(
    hardware: Hardware, there: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedups, "installed", lambda module: there)
    planned, notes = speedups.without_missing(plan(**ASKED), hardware)
    assert planned.config == {
        "enable_liger_kernel": False,
        "flash_attn": "auto",
        "use_unsloth": False,
        "cutoff_len": 512,
    }
    assert [setting.source for setting in planned.settings] == ["hardware"] * 3 + ["flag"]
    assert len(notes) == 3
    assert all(why in note for note in notes)


def test_uses_what_is_asked_for_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speedups, "installed", lambda module: True)
    planned = plan(**ASKED)
    assert speedups.without_missing(planned, GPU) == (planned, [])


@pytest.mark.parametrize("hardware", [GPU, CPU], ids=["gpu", "cpu"])
def test_nothing_asked_for_nothing_said(hardware: Hardware) -> None:
    planned = plan(flash_attn="sdpa", enable_liger_kernel=False)
    assert speedups.without_missing(planned, hardware) == (planned, [])


def test_installed() -> None:
    assert speedups.installed("json")
    assert not speedups.installed("no_such_module")
