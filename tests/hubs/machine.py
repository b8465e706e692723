"""The environment in which the hubs' clients talk to the servers on loopback, and to nobody else."""

import os
from pathlib import Path

# Nothing listens there: a hub that is not part of a test is down.
NOBODY = "http://127.0.0.1:9"

_CLIENTS = ("HF_", "HUGGING_FACE", "HUGGINGFACE", "MODELSCOPE_", "TRANSFORMERS_", "TQDM_", "NO_COLOR", "FORCE_COLOR")


def environment(
    home: Path, *, huggingface: str = NOBODY, modelscope: str = NOBODY, **more: str | Path
) -> dict[str, str]:
    """What a process with its home and caches in `home` needs; the clients read these variables when imported."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_CLIENTS)}
    own = {
        "HOME": home,
        "HF_HOME": home / "huggingface",
        "MODELSCOPE_CACHE": home / "modelscope",
        "MODELSCOPE_HOME": home / "modelscope_home",
        "HF_ENDPOINT": huggingface,
        "MODELSCOPE_ENDPOINT": modelscope,
    }
    return inherited | {name: str(value) for name, value in (own | more).items()}
