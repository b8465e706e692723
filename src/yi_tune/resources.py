"""Finds the shipped `configs/` and `data/`, in an installed wheel and in a checkout alike."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
# A wheel carries both folders inside the package (pyproject.toml, force-include); an editable install
# leaves them at the top of the checkout.
_ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parents[1]

CONFIGS = _ROOT / "configs"
DATA = _ROOT / "data"
# The chat template trained with: LLaMA-Factory's `yi` in transformers' form, which is what nano ships.
CHAT_TEMPLATE = DATA / "nano" / "chat_template.jinja"
