"""Machines that meet, each a thread here. For real: tests/e2e/test_several.py."""

import socket
import threading
from typing import Any

import pytest

from tests.plans import plan
from yi_tune import meeting
from yi_tune.config import Config
from yi_tune.errors import YiTuneError
from yi_tune.meeting import Nodes, meet


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def record(**changes: Any) -> dict[str, Any]:
    """A run.json of which these keys of the config, or of the rest, are others."""
    content = plan().record
    of_config = {key: value for key, value in changes.items() if key in content["config"]}
    return (
        content | {"config": content["config"] | of_config} | {key: changes[key] for key in changes.keys() - of_config}
    )


def meeting_of(*told: tuple[dict[str, Any], set[str]]) -> list[tuple[str, Config] | YiTuneError]:
    """What each of the machines that tell so gets."""
    port, got = free_port(), {}

    def machine(rank: int) -> None:
        try:
            got[rank] = meet(Nodes(len(told), rank, "127.0.0.1", port), *told[rank])
        except YiTuneError as error:
            got[rank] = error

    threads = [threading.Thread(target=machine, args=[rank]) for rank in range(len(told))]
    for thread in reversed(threads):  # the first may come last
        thread.start()
    for thread in threads:
        thread.join()
    return [got[rank] for rank in range(len(told))]


def test_the_newest_common_checkpoint_and_the_smallest_division() -> None:
    small = record(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    here, there = meeting_of(
        (record(), {"checkpoint-5", "checkpoint-10", "checkpoint-15"}), (small, {"checkpoint-5", "checkpoint-10"})
    )
    assert here == there
    assert isinstance(here, tuple)
    assert here[0] == "checkpoint-10"
    assert (here[1]["per_device_train_batch_size"], here[1]["gradient_accumulation_steps"]) == (2, 4)
    assert [got[0] for got in meeting_of((small, {"checkpoint-5"}), (record(), set())) if isinstance(got, tuple)] == [
        ""
    ] * 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"versions": {"torch": "0.1"}}, "torch: {} -> 0.1"),
        ({"model": "yi-1.5-6b-chat"}, "model: nano -> yi-1.5-6b-chat"),
        ({"data": {"identity": "identity-1.json"}}, "data identity: "),
        ({"cutoff_len": 512}, "cutoff_len: 1024 -> 512"),
        ({"bf16": False, "fp16": True}, "bf16: True -> False; fp16: False -> True"),
        ({"gpus": 4}, "GPUs in all: 1 -> 4"),
    ],
)
def test_all_refuse_what_differs_on_one(changes: dict[str, Any], told: str) -> None:
    got = meeting_of((record(), set()), (record(), set()), (record(**changes), set()))
    assert all(isinstance(error, YiTuneError) for error in got)
    assert len({str(error) for error in got}) == 1
    assert f"{socket.gethostname()} (--node-rank 2) differs from {socket.gethostname()}: " in str(got[0])
    assert told.format(plan().record["versions"]["torch"]) in str(got[0])


def test_where_nobody_listens_or_another_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_REACHED", 0.5)
    with pytest.raises(YiTuneError, match=r"The machines do not meet at 127.*: nothing answers there\.$") as told:
        meet(Nodes(2, 1, "127.0.0.1", free_port()), record(), set())
    assert "--node-rank 0" in told.value.hint
    with socket.create_server(("", 0)) as taken, pytest.raises(YiTuneError, match="another program has it"):
        meet(Nodes(2, 0, "127.0.0.1", taken.getsockname()[1]), record(), set())
    with pytest.raises(YiTuneError, match=r"no machine of that name is known here\.$"):
        meet(Nodes(2, 1, "no-such-machine.invalid", 1), record(), set())
    with socket.create_server(("", 0)) as silent, pytest.raises(YiTuneError, match="another program seems to listen"):
        meet(Nodes(2, 1, "127.0.0.1", silent.getsockname()[1]), record(), set())


def test_one_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_TYPED", 0.5)
    with pytest.raises(YiTuneError, match="nothing was heard of --node-rank 1") as told:
        meet(Nodes(2, 0, "127.0.0.1", free_port()), record(), set())
    assert "on all machines" in told.value.hint
