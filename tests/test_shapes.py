import json
from pathlib import Path

import pytest

from yi_tune.models import CATALOGUE
from yi_tune.shapes import Shape, read_shape


# Counted from the models' config.json.
@pytest.mark.parametrize(
    ("name", "parameters", "gibibytes"),
    [("yi-1.5-6b-chat", 6.061, 11.29), ("yi-1.5-9b-chat", 8.829, 16.45), ("yi-1.5-34b-chat-16k", 34.389, 64.05)],
)
def test_size_of_yi(name: str, parameters: float, gibibytes: float) -> None:
    shape = CATALOGUE[name].shape
    assert shape is not None
    assert round(shape.parameters / 1e9, 3) == parameters
    assert round(shape.weight_bytes / 2**30, 2) == gibibytes


def test_size_of_nano_is_that_of_its_file() -> None:
    nano = CATALOGUE["nano"].path(Path())
    size = (nano / "model.safetensors").stat().st_size
    assert 0.95 < read_shape(nano).weight_bytes / size <= 1


def test_size_by_hand() -> None:
    # One layer, 64 wide: 4 x 64 x 64 + 3 x 64 x 128 linear parameters; three norms; embeddings and head 2 x 100 x 64.
    shape = Shape(hidden=64, layers=1, heads=1, kv_heads=1, ffn=128, vocab=100)
    assert shape.linear_parameters == 4 * 64 * 64 + 3 * 64 * 128
    assert shape.parameters == shape.linear_parameters + 3 * 64 + 2 * 100 * 64


def test_config_without_a_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(KeyError):
        read_shape(tmp_path)
