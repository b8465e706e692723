import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.hubs.models import YI_TOKENIZER
from yi_tune.errors import YiTuneError
from yi_tune.models import CATALOGUE
from yi_tune.sampling import Generation, Sampling


def test_within_range() -> None:
    Sampling(temperature=2, top_p=1, repetition_penalty=10, max_new_tokens=1, seed=2**63 - 1, top_k=10**9)
    Sampling(temperature=0, top_p=0.01, repetition_penalty=0.1, seed=0, top_k=-1)


@pytest.mark.parametrize("option", [field.name for field in fields(Sampling)])
def test_out_of_range(option: str) -> None:
    for value in (-2, math.nan):
        with pytest.raises(YiTuneError, match=rf"Out of range: {option} {value} \(takes ") as caught:
            Sampling(**{option: value})
        assert caught.value.hint


def test_temperature_has_the_limit_of_the_api() -> None:
    with pytest.raises(YiTuneError, match="temperature 3"):
        Sampling(temperature=3)


# From tokens to text

TEXT = "你好，世界！🚀👨‍👩‍👧 龘𠮷 かなカナ 한국어 é ok\n\n    return  1\n- 一\n"
NANO = pytest.param(CATALOGUE["nano"].path(Path()), id="nano")
YI = pytest.param(
    YI_TOKENIZER, id="Yi", marks=pytest.mark.skipif(not YI_TOKENIZER.is_dir(), reason="the real tokenizer is not here")
)


@pytest.fixture(scope="module", params=[NANO, YI])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(request.param, add_prefix_space=False)


def pieces_of(tokenizer: Any, text: str, *, cut: int = 0, **options: Any) -> tuple[list[str], Generation]:
    """The pieces that a reply's `text` comes in, up to its last tokens but `cut` and the one that ends it."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pieces: list[str] = []
    reply = Generation([], Sampling(), pieces.append, **options)
    for token in [*ids[: len(ids) - cut], end]:
        reply.take(token, tokenizer, [end])
        if reply.over:
            break
    assert (reply.text, reply.finish, pieces.pop()) == ("".join(pieces), "stop", "")
    assert all(pieces)
    return pieces, reply


def test_characters_arrive_whole_and_at_once(tokenizer: Any) -> None:
    pieces, reply = pieces_of(tokenizer, TEXT)
    assert reply.text == TEXT
    assert all("\ufffd" not in piece for piece in pieces)
    # Some characters took several tokens, or this proves nothing; each came with the last of its own.
    assert len(reply.tokens) - len(pieces) > 5
    for character in "，🚀かナ한":
        assert any(piece.endswith(character) for piece in pieces)


def test_character_cut_short_is_left_out(tokenizer: Any) -> None:
    assert pieces_of(tokenizer, "好🚀", cut=1)[1].text == "好"


@pytest.mark.parametrize(
    ("stops", "text", "said"),
    [
        (["END"], "one END two", "one "),
        (["END"], "one ENd", "one ENd"),
        (["b", "ab"], "xab", "x"),
        (["aab"], "aaab", "a"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["。"], "你好。再见", "你好"),
    ],
)
def test_stop_strings(stops: list[str], text: str, said: str, tokenizer: Any) -> None:
    assert pieces_of(tokenizer, text, stop=stops)[1].text == said


def test_length_and_failure(tokenizer: Any) -> None:
    said: list[str] = []
    short, failed = Generation([], Sampling(max_new_tokens=1), said.append), Generation([], Sampling(), said.append)
    short.take(tokenizer.encode("好", add_special_tokens=False)[0], tokenizer, [])
    failed.fail()
    assert (short.finish, failed.finish, said[-2:]) == ("length", "error", ["", ""])
