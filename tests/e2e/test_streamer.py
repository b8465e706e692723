"""Characters that span tokens arrive whole, as nano's tokenizer and Yi's write them."""

from pathlib import Path
from typing import Any

import pytest

from tests.hubs.models import YI_TOKENIZER
from yi_tune.models import CATALOGUE

TEXT = "你好，世界！🚀👨‍👩‍👧 龘𠮷 かなカナ 한국어 é ok\n\n    return  1\n- 一\n"
NANO = pytest.param(CATALOGUE["nano"].path(Path()), id="nano")
YI = pytest.param(
    YI_TOKENIZER, id="Yi", marks=pytest.mark.skipif(not YI_TOKENIZER.is_dir(), reason="the real tokenizer is not here")
)


@pytest.fixture(params=[NANO, YI])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(request.param, add_prefix_space=False)


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    """What comes after each of the ids, and at the end."""
    import torch

    from yi_tune.engine.streamer import ReplyStreamer

    streamer = ReplyStreamer(tokenizer)
    streamer.put(torch.tensor([[1, 2, 3]]))
    pieces = []
    for token in [*ids, None]:
        if token is None:
            streamer.end()
        else:
            streamer.put(torch.tensor([token]))
        came = ""
        while not streamer.text_queue.empty():
            came += streamer.text_queue.get() or ""
        pieces.append(came)
    assert streamer.new_ids == ids
    return pieces


def test_characters_arrive_whole_and_at_once(tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)
    # Some characters took several tokens, or this proves nothing; each came with the last of its own.
    assert pieces.count("") > 5
    assert pieces[-1] == ""
    for character in "，🚀かナ한":
        assert any(piece.endswith(character) for piece in pieces)


def test_character_cut_short_is_left_out(tokenizer: Any) -> None:
    ids = tokenizer.encode("好🚀", add_special_tokens=False)
    assert "".join(streamed(tokenizer, ids[:-1])) == "好"


def test_control_tokens_are_not_shown(tokenizer: Any) -> None:
    ids = tokenizer.encode("好", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "".join(streamed(tokenizer, [*ids, end])) == "好"
