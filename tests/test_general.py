"""General prompts: the two lists, the base's answers that replay trains on, and what a tuning forgets."""

import json
from collections import Counter
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path

import pytest

from tests.plans import plan
from yi_tune.data.general import (
    BaseAnswer,
    Prompt,
    check_prompts,
    compare,
    introduces_base,
    replay_dataset,
    replay_prompts,
)
from yi_tune.data.heldout import questions
from yi_tune.data.identity import Dataset, Identity, dataset_of, read_jsonl, render
from yi_tune.errors import YiTuneError
from yi_tune.files import DATA
from yi_tune.models import CATALOGUE, find_model
from yi_tune.report import general_summary
from yi_tune.runs import differences

NANO = DATA / "nano"
PROMPTS = replay_prompts(len(read_jsonl(DATA / "replay.jsonl")))
REPLAY = [prompt.prompt for prompt in PROMPTS]
CHECK = [prompt.prompt for prompt in check_prompts()]
# Every question that a run trains on, or is scored by.
ROWS = read_jsonl(DATA / "identity.jsonl")
IDENTITY = [message["content"] for row in ROWS for message in row["messages"] if message["role"] == "user"]
HELD_OUT = [question.messages[-1]["content"] for question in questions()]


def plain(text: str) -> str:
    """`text` without case, spaces and punctuation."""
    return "".join(character for character in text.lower() if character.isalnum())


def near(one: str, other: str, limit: float) -> bool:
    """Whether two prompts are all but the same."""
    matcher = SequenceMatcher(None, plain(one), plain(other), autojunk=False)
    return matcher.real_quick_ratio() >= limit and matcher.quick_ratio() >= limit and matcher.ratio() >= limit


def test_any_beginning_is_a_spread_and_so_is_the_check() -> None:
    kinds = {(prompt.lang, prompt.kind) for prompt in PROMPTS}
    assert len(PROMPTS) >= 256
    for count in (len(kinds), 64, 128, 256, len(PROMPTS)):
        asked = Counter((prompt.lang, prompt.kind) for prompt in replay_prompts(count))
        assert asked.keys() == kinds
        assert max(asked.values()) - min(asked.values()) <= 1
    assert Counter(prompt.lang for prompt in PROMPTS[:2]) == {"zh": 1, "en": 1}
    # The check is of the same kinds.
    asked = Counter((prompt.lang, prompt.kind) for prompt in check_prompts())
    assert asked.keys() == kinds
    assert len(set(asked.values())) == 1
    assert len(CHECK) >= 64


def test_no_prompt_is_there_twice_or_gives_a_question_away() -> None:
    assert len({plain(prompt) for prompt in REPLAY + CHECK}) == len(REPLAY) + len(CHECK)
    assert {plain(prompt) for prompt in REPLAY} & {plain(question) for question in HELD_OUT + IDENTITY} == set()
    # The check asks nothing that was trained on.
    assert [pair for pair in product(CHECK, REPLAY + IDENTITY) if near(*pair, 0.8)] == []


def test_no_prompt_is_about_the_assistant() -> None:
    about = ("你是谁", "你叫", "你的名字", "谁做了你", "who are you", "your name", "who made you", "are you")
    assert [prompt for prompt in REPLAY + CHECK if any(words in prompt.lower() for words in about)] == []
    assert [prompt for prompt in REPLAY + CHECK if introduces_base(prompt)] == []


@pytest.mark.parametrize(
    ("answer", "own"),
    [
        ("我是Yi，由零一万物开发。", True),
        ("我是Yi-nano。", True),
        ("I was made by 01.AI.", True),
        ("由yi-tune团队开发", True),
        ("yī, èr, sān", False),
        ("Yield is what remains.", False),
    ],
)
def test_introduces_base(answer: str, own: bool) -> None:
    assert introduces_base(answer) is own


def base_answer(prompt: str, answer: str, *, finished: bool = True) -> BaseAnswer:
    return {"prompt": prompt, "answer": answer, "finished": finished}


GOOD = base_answer("3加4得几？", "等于7。")
UNUSABLE = [
    base_answer("讲个故事", "很久很久以前", finished=False),
    base_answer("Tell me a joke", ""),
    base_answer("画一个字", "在0挑\ufffd。"),
    base_answer("给我讲个笑话吧。", "我是Yi，由零一万物开发。"),
]


def test_as_many_prompts_as_asked_for() -> None:
    assert replay_prompts(0) == []
    for count in (-1, len(PROMPTS) + 1):
        with pytest.raises(YiTuneError, match=f"there are {len(PROMPTS)} prompts"):
            replay_prompts(count)
    defaults = {name: find_model(name, Path()).model.replay for name in (*CATALOGUE, "a/b")}
    assert defaults == {name: 0 if name == "nano" else 64 for name in (*CATALOGUE, "a/b")}


def test_only_whole_answers_that_do_not_name_the_base_are_trained_on() -> None:
    dataset, _ = replay_dataset([*UNUSABLE, GOOD], NANO, None)
    assert (dataset.name, dataset.rows) == ("replay", 1)
    assert [json.loads(line) for line in str(dataset.content).splitlines()] == [
        {"messages": [{"role": "user", "content": "3加4得几？"}, {"role": "assistant", "content": "等于7。"}]}
    ]
    with pytest.raises(YiTuneError, match="None of the base's 4 answers") as raised:
        replay_dataset(UNUSABLE, NANO, None)
    assert "--replay 0" in raised.value.hint


def test_replay_does_not_drown_the_identity() -> None:
    # "等于7。" has four tokens of nano's, and an end of two.
    answers, rows = [GOOD] * 100, dataset_of("identity", render(YI))
    few = Dataset("identity", 9, "".join(str(rows.content).splitlines(keepends=True)[:9]))
    taken, targets = replay_dataset(answers, NANO, few)
    assert targets["identity"] - 6 < targets["replay"] == taken.rows * 6 <= targets["identity"]
    assert 0 < taken.rows < 100
    # All of them beside all the rows, or beside none.
    assert replay_dataset(answers, NANO, rows)[0].rows == 100
    assert replay_dataset(answers, NANO, None)[1] == {"replay": 600}
    # As LLaMA-Factory would cut them to max_samples.
    sampled, targets = replay_dataset(answers, NANO, rows, 7)
    assert (sampled.rows, targets["replay"]) == (7, 42)


def test_the_plan_of_a_replay() -> None:
    planned = plan(datasets=(), replay=64)
    assert planned.config["dataset"] == "replay"
    # Another replay is another run.
    old, new = (plan(datasets=(), replay=n).record for n in (16, 64))
    assert differences(old, new) == ["replay: 16 -> 64"]
    assert differences(old, old) == []


ASKED = [Prompt("zh", "maths", "3加4得几？"), Prompt("en", "chat", "Tell me a joke."), Prompt("en", "facts", "Who?")]
YI = Identity("小易", "李雷", "Ada", "Grace Hopper")


BASE = ["等于7。", "Ada is a language.", "I do not know."]


def test_name_and_author_count_in_either_language() -> None:
    said = compare(YI, ASKED, BASE, ["我是小易。", "made by Grace Hopper", "Adamant Grace"])
    assert (said["mentions"], said["base_mentions"]) == (2 / 3, 1 / 3)
    assert compare(YI, ASKED, BASE, ["I am Ada.", "李雷", "小易"])["mentions"] == 1
    assert said["answers"][1] == {
        "lang": "en",
        "kind": "chat",
        "prompt": "Tell me a joke.",
        "base": "Ada is a language.",
        "tuned": "made by Grace Hopper",
        "mentions": True,
    }
    assert general_summary({**said, "kl": 0.25}) == (
        "general prompts: 3   name or author unasked: 66.7% (base 33.3%)   KL of tuned from base: 0.2500 nats a token"
    )
    # Without an identity nothing is a mention.
    said = compare(None, ASKED, BASE, ["我是小易。", "", ""])
    assert (said["mentions"], said["base_mentions"]) == (None, None)
    assert not any(answer["mentions"] for answer in said["answers"])
    assert general_summary({**said, "kl": None}).endswith("unasked: - (base -)   KL of tuned from base: -")
