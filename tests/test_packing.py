from pathlib import Path
from typing import Any

import pytest

from yi_tune.config import find_config, read_config, reasons
from yi_tune.data.dataset import Dataset
from yi_tune.data.identity import Identity
from yi_tune.data.own import Checked, OwnData
from yi_tune.data.packing import choose_packing, plan_packing
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel
from yi_tune.plan.memory import Fit
from yi_tune.plan.plan import Setting, TrainPlan, plan_train
from yi_tune.runs.folder import Run


def choose(own: list[int], alone: int, packs: int, **more: Any) -> Any:
    """The choice for a micro-batch of 1, 8 times an update, at 1024 tokens."""
    usual: dict[str, Any] = {"micro_batch": 1, "accumulation": 8, "cutoff_len": 1024, "flash_attn": "auto"}
    return choose_packing(own, alone, packs, **usual | more)


def test_packed_where_it_makes_fewer_steps_at_the_same_tokens() -> None:
    # 1,000 rows fill 500 packs, which hold twice the tokens: half as many of them make an update.
    chosen = choose([1024] * 10 + [512] * 980, 0, 500)
    assert chosen.pays
    assert chosen.accumulation == 4
    assert chosen.why == "500 steps an epoch packed, 990 not packed, at the same tokens an update"
    # Rows that are never packed, identity's and replay's, are a step each.
    assert choose([1024] * 10 + [512] * 980, 400, 500).why.startswith("900 steps an epoch packed, 1,390 not")


@pytest.mark.parametrize(
    ("own", "alone", "packs", "more", "why"),
    [
        ([1024] * 100, 0, 100, {}, "100 steps an epoch packed, 100 not packed"),
        # Eight short rows are a step already: a pack each, and identity rows one by one, are more.
        ([1024, *[100] * 800], 400, 90, {"micro_batch": 8, "accumulation": 1}, "490 steps an epoch packed, 151"),
        ([100] * 800, 0, 80, {}, "1024 tokens in a step need more memory"),
        # An update has 700 tokens; a pack has 1,000.
        (
            [1024, *[340] * 300],
            0,
            101,
            {"accumulation": 2},
            "the tokens of an update: 0.67 would",
        ),
        ([1024] * 10 + [512] * 980, 0, 500, {"flash_attn": "fa2"}, "not known to be exact with flash_attn fa2"),
    ],
)
def test_not_packed(own: list[int], alone: int, packs: int, more: dict[str, Any], why: str) -> None:
    chosen = choose(own, alone, packs, **more)
    assert not chosen.pays
    assert why in chosen.why


def planned(overrides: dict[str, Any], lengths: tuple[int, ...], replay: int = 0) -> TrainPlan:
    """A plan for nano, before packing is decided; rows of own data have these lengths in tokens."""
    path = find_config("qlora")
    own = OwnData(Path("/cache/x"), Checked(len(lengths), 0, []), lengths)
    return plan_train(
        read_config(path),
        reasons(path),
        overrides,
        local=LocalModel(CATALOGUE["nano"], Path("/models/m")),
        identity=Identity("小易", "李雷"),
        datasets=(Dataset("identity", 398, ""), own.dataset),
        own=own,
        fit=Fit(1, 8, False, Hardware(None, bf16=True, free=20_000_000_000)),
        run=Run(Path("/ws/saves/m/identity")),
        replay=replay,
    )


def packing(plan: TrainPlan) -> Setting:
    """What became of neat_packing."""
    (setting,) = (setting for setting in plan_packing(plan).settings if setting.key == "neat_packing")
    return setting


def test_a_batch_set_by_hand_is_left() -> None:
    plan = planned({"per_device_train_batch_size": 1}, (1024, 1024))
    assert plan.config["dataset"] == "identity,own"
    assert plan.config["tokenized_path"] == "/ws/saves/m/identity/data/tokenized"
    left = packing(plan)
    assert (left.value, left.source, left.why) == (False, "data", "the batch is set by hand")


def test_rows_of_replay_are_counted() -> None:
    lengths = (1024,) * 10 + (512,) * 980
    chosen = packing(planned({}, lengths, replay=100))
    assert chosen.value is True
    # 500 packs, 398 rows of identity and 100 of replay; a row a step without.
    assert chosen.why.startswith("998 steps an epoch packed, 1,488 not packed")
