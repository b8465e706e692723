"""Speed-ups that other packages bring: a config may ask for them, and trains without them where they cannot work.

No shipped config asks for one until `make bench-gpu` has shown what it is worth.
"""

from dataclasses import replace
from importlib.util import find_spec

from yi_tune.hardware import Hardware
from yi_tune.plan.plan import Setting, TrainPlan

# What asks for one, the module that it takes, and the value that does without it.
_SPEEDUPS = (
    ("enable_liger_kernel", True, "liger_kernel", False),
    ("flash_attn", "fa2", "flash_attn", "auto"),
    ("use_unsloth", True, "unsloth", False),
)


def installed(module: str) -> bool:
    """Whether a package can be imported, without doing so."""
    return find_spec(module) is not None


def without_missing(planned: TrainPlan, hardware: Hardware) -> tuple[TrainPlan, list[str]]:
    """The plan without the speed-ups that cannot work on this machine, and what to tell the user of each."""
    settings, notes = [], []
    for setting in planned.settings:
        for key, asked, module, without in _SPEEDUPS:
            if (setting.key, setting.value) == (key, asked) and (hardware.gpu is None or not installed(module)):
                why = f"{module} is not installed" if hardware.gpu else f"{module} needs a GPU"
                setting = Setting(key, without, "hardware", why)
                notes.append(f"Note: {why}; training goes without {key}.")
        settings.append(setting)
    return replace(planned, settings=tuple(settings)), notes
