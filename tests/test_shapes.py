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


def test_estimate_grows_with_the_model_and_lies_between_4_and_16_bits() -> None:
    shapes = [CATALOGUE[f"yi-1.5-{size}-chat"].shape for size in ("6b", "9b", "34b")]
    estimates = [shape.qlora_bytes for shape in shapes if shape is not None]
    assert len(estimates) == 3
    assert estimates == sorted(estimates)
    for shape, estimate in zip(shapes, estimates, strict=True):
        assert shape is not None
        assert shape.weight_bytes / 4 < estimate < shape.weight_bytes


def test_estimate_by_hand() -> None:
    # One layer, 64 wide: 4 x 64 x 64 + 3 x 64 x 128 linear parameters; embeddings and head 2 x 100 x 64.
    shape = Shape(hidden=64, layers=1, heads=1, kv_heads=1, ffn=128, vocab=100)
    linear, rest = 4 * 64 * 64 + 3 * 64 * 128, 2 * 100 * 64 + 3 * 64
    assert shape.parameters == linear + rest
    weights = linear * (4 + 8 / 64 + 32 / 64 / 256) / 8 + 2 * rest
    adapter = 16 * 8 * (4 * 128 + 3 * 192)
    activations = 1024 * 2 * (64 + 8 * 64 + 4 * 128) + 1024 * 100 * 10
    assert shape.qlora_bytes == int(weights + adapter + activations + 1_000_000_000)


def test_config_without_a_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(KeyError):
        read_shape(tmp_path)
