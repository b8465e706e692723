"""Replay: which prompts, which answers, and what the run folder keeps."""

import json
from pathlib import Path

import pytest

from yi_tune.config import find_config, read_config
from yi_tune.data.general import replay_prompts
from yi_tune.data.identity import Identity
from yi_tune.data.replay import BaseAnswer, choose_prompts, keep_answers, kept_answers, replay_dataset
from yi_tune.errors import YiTuneError
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel, find_model
from yi_tune.plan.memory import Fit
from yi_tune.plan.plan import TrainPlan, plan_train
from yi_tune.runs.folder import Run
from yi_tune.runs.records import differences, record

GOOD = BaseAnswer("3加4得几？", "等于7。", finished=True)
UNUSABLE = [
    BaseAnswer("讲个故事", "很久很久以前", finished=False),
    BaseAnswer("Tell me a joke", "", finished=True),
    BaseAnswer("画一个字", "在0挑\ufffd。", finished=True),
    BaseAnswer("给我讲个笑话吧。", "我是Yi，由零一万物开发。", finished=True),
]


def test_as_many_prompts_as_asked_for() -> None:
    assert choose_prompts(0) == []
    assert choose_prompts(16) == choose_prompts(64)[:16]
    assert choose_prompts(len(replay_prompts())) == replay_prompts()


@pytest.mark.parametrize("count", [-1, len(replay_prompts()) + 1])
def test_no_more_than_there_are(count: int) -> None:
    with pytest.raises(YiTuneError) as raised:
        choose_prompts(count)
    assert str(len(replay_prompts())) in raised.value.message


@pytest.mark.parametrize(
    ("model", "count"), [(name, 0 if name == "nano" else 64) for name in CATALOGUE] + [("a/b", 64)]
)
def test_default(model: str, count: int) -> None:
    assert find_model(model, Path()).model.replay == count


def test_only_whole_answers_that_do_not_name_the_base_are_trained_on() -> None:
    dataset = replay_dataset([*UNUSABLE, GOOD])
    assert (dataset.name, dataset.rows) == ("replay", 1)
    assert [json.loads(line) for line in str(dataset.content).splitlines()] == [
        {"messages": [{"role": "user", "content": "3加4得几？"}, {"role": "assistant", "content": "等于7。"}]}
    ]


def test_a_base_without_usable_answers() -> None:
    with pytest.raises(YiTuneError) as raised:
        replay_dataset(UNUSABLE)
    assert "None of the base's 4 answers" in raised.value.message
    assert "--replay 0" in raised.value.hint


def test_answers_are_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert kept_answers(run) is None
    # What a process leaves that was killed while it wrote.
    (tmp_path / "replay.jsonl.part").write_text('{"prompt": "3加')
    assert kept_answers(run) is None
    # Line ends that are none in JSON lines.
    odd = BaseAnswer("Write a poem", "one\u2028two\x85three\nfour", finished=True)
    keep_answers(run, [*UNUSABLE, GOOD, odd])
    assert kept_answers(run) == [*UNUSABLE, GOOD, odd]


def planned(replay: int) -> TrainPlan:
    """A plan for nano."""
    return plan_train(
        read_config(find_config("qlora")),
        {},
        {},
        local=LocalModel(CATALOGUE["nano"], Path("/models/nano")),
        identity=Identity("Ada", "Grace"),
        datasets=(),
        fit=Fit(8, 1, False, Hardware(None, bf16=True, free=20_000_000_000)),
        run=Run(Path("/ws/saves/nano/identity")),
        replay=replay,
    )


def test_the_plan_says_how_many() -> None:
    plan = planned(64)
    setting = next(setting for setting in plan.settings if setting.key == "dataset_dir")
    assert "64 answers of the base" in setting.why
    assert plan.config["dataset"] == "replay"
    assert "answers" not in next(setting for setting in planned(0).settings if setting.key == "dataset_dir").why


def test_the_base_is_asked_as_it_will_be_trained() -> None:
    plan = planned(64)
    assert plan.base_config.items() < plan.chat_config.items()
    assert "adapter_name_or_path" not in plan.base_config
    assert plan.base_config["quantization_bit"] == 4


def test_another_replay_is_another_run() -> None:
    old, new = (record(planned(n).config, planned(n).local, {"name": "Ada"}, {}, replay=n) for n in (16, 64))
    assert differences(old, new) == ["replay: 16 -> 64"]
    assert differences(old, old) == []
