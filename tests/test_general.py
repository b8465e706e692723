"""The two lists of general prompts, and answers in which a base introduces itself."""

from collections import Counter
from difflib import SequenceMatcher
from itertools import product

import pytest

from yi_tune.data.general import check_prompts, introduces_base, replay_prompts
from yi_tune.data.heldout import questions
from yi_tune.data.identity import identity_rows

REPLAY = [prompt.prompt for prompt in replay_prompts()]
CHECK = [prompt.prompt for prompt in check_prompts()]
# Every question that a run trains on, or is scored by.
IDENTITY = [message["content"] for row in identity_rows() for message in row["messages"] if message["role"] == "user"]
HELD_OUT = [question.messages[-1]["content"] for question in questions()]


def plain(text: str) -> str:
    """`text` without case, spaces and punctuation."""
    return "".join(character for character in text.lower() if character.isalnum())


def near(one: str, other: str, limit: float) -> bool:
    """Whether two prompts are all but the same."""
    matcher = SequenceMatcher(None, plain(one), plain(other), autojunk=False)
    return matcher.real_quick_ratio() >= limit and matcher.quick_ratio() >= limit and matcher.ratio() >= limit


def test_any_beginning_is_a_spread() -> None:
    prompts = replay_prompts()
    kinds = {(prompt.lang, prompt.kind) for prompt in prompts}
    assert len(prompts) >= 256
    for count in (len(kinds), 64, 128, 256, len(prompts)):
        asked = Counter((prompt.lang, prompt.kind) for prompt in prompts[:count])
        assert asked.keys() == kinds
        assert max(asked.values()) - min(asked.values()) <= 1
    assert Counter(prompt.lang for prompt in prompts[:2]) == {"zh": 1, "en": 1}


def test_the_check_is_of_the_same_kinds_in_both_languages() -> None:
    asked = Counter((prompt.lang, prompt.kind) for prompt in check_prompts())
    assert asked.keys() == {(prompt.lang, prompt.kind) for prompt in replay_prompts()}
    assert len(set(asked.values())) == 1
    assert len(CHECK) >= 64


def test_no_prompt_is_there_twice() -> None:
    assert len({plain(prompt) for prompt in REPLAY + CHECK}) == len(REPLAY) + len(CHECK)


def test_the_check_asks_nothing_that_was_trained_on() -> None:
    assert [pair for pair in product(CHECK, REPLAY) if near(*pair, 0.8)] == []
    assert [pair for pair in product(CHECK, IDENTITY) if near(*pair, 0.8)] == []


def test_replay_gives_away_no_held_out_question() -> None:
    assert {plain(prompt) for prompt in REPLAY} & {plain(question) for question in HELD_OUT + IDENTITY} == set()


def test_no_prompt_is_about_the_assistant() -> None:
    about = ("你是谁", "你叫", "你的名字", "谁做了你", "who are you", "your name", "who made you", "are you")
    assert [prompt for prompt in REPLAY + CHECK if any(words in prompt.lower() for words in about)] == []
    assert [prompt for prompt in REPLAY + CHECK if introduces_base(prompt)] == []


@pytest.mark.parametrize(
    ("answer", "own"),
    [
        ("我是Yi，由零一万物开发。", True),
        ("我是Yi-nano。", True),
        ("As a Yi model I cannot say.", True),
        ("I was made by 01.AI.", True),
        ("由yi-tune团队开发", True),
        ("I am ChatGPT.", True),
        ("yī, èr, sān", False),
        ("Yield is what remains.", False),
        ("一共是yi个字", False),
        ("It is 5.", False),
        ("", False),
    ],
)
def test_introduces_base(answer: str, own: bool) -> None:
    assert introduces_base(answer) is own
