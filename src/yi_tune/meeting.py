"""Several machines that train one run: before anything is loaded they meet, and compare what they are to do."""

import errno
import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from yi_tune.config import Config
from yi_tune.errors import YiTuneError
from yi_tune.language import kept
from yi_tune.runs import DIVISION, differences

# Seconds for the first machine to answer, of which torch lets up to three times as many pass; and for all commands.
_REACHED, _TYPED = 15, 600


@dataclass(frozen=True)
class Nodes:
    """How many machines there are, which of them this is, and where all of them meet: at the first."""

    count: int
    rank: int
    host: str
    port: int


def meet(nodes: Nodes, record: dict[str, Any], checkpoints: set[str]) -> tuple[str, Config]:
    """Compare this machine's run.json with the others'; returns the newest of the `checkpoints` that all have ("" for
    none), and the division of a step that fits all.

    Raises YiTuneError on all machines for a difference, and when they do not meet.
    """
    mine = {"machine": socket.gethostname(), "checkpoints": sorted(checkpoints), **record}
    first, *others = told = _exchange(nodes, mine)
    for rank, other in enumerate(others, 1):
        if changed := differences(_compared(first), _compared(other)):
            raise YiTuneError(
                "{machine} (--node-rank {rank}) differs from {first}: {changed}.",
                "Give all the same command, but for --node-rank, with the same data, GPUs and versions.",
                machine=other["machine"],
                rank=rank,
                first=first["machine"],
                changed="; ".join(changed),
            )
    common = set.intersection(*(set(one["checkpoints"]) for one in told))
    divisions = [{key: one["config"][key] for key in DIVISION if key in one["config"]} for one in told]
    smallest = min(divisions, key=lambda division: [int(value or 0) for value in division.values()])
    return max(common, key=lambda name: int(name.rpartition("-")[2]), default=""), smallest


def _compared(record: dict[str, Any]) -> dict[str, Any]:
    """A run.json with what may differ between two commands for a run, but not between machines, among its identity."""
    own = {key: record["config"].get(key) for key in ("bf16", "fp16", "use_cpu")}
    return record | {"identity": {**record["identity"], **record["versions"], **own, "GPUs in all": record["gpus"]}}


def _exchange(nodes: Nodes, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What each machine tells of itself, by rank."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    # In a thread: at a port where another program listens it would wait for ever.
    def reach() -> None:
        try:
            reached = timedelta(seconds=_REACHED)
            stores.put(TCPStore(nodes.host, nodes.port, nodes.count, first, reached, wait_for_workers=False))
        except (OSError, DistError) as error:
            stores.put(error)

    stores: SimpleQueue[Any] = SimpleQueue()
    where, first, store = f"{nodes.host}:{nodes.port}", nodes.rank == 0, None
    if first:
        _check_port(nodes)
    try:
        # In a moment: torch tries a name that nobody knows until its time is up.
        socket.getaddrinfo(nodes.host, nodes.port)
        Thread(target=reach, daemon=True).start()
        reached = stores.get(timeout=3 * _REACHED)
        if isinstance(reached, Exception):
            raise reached
        store = reached
        store.set(f"told {nodes.rank}", json.dumps(mine))
        _wait(store, "told", nodes.count, where)
        told = [json.loads(store.get(f"told {rank}")) for rank in range(nodes.count)]
        store.set(f"read {nodes.rank}", "")
        if first:  # the others read from here
            _wait(store, "read", nodes.count, where)
        return told
    except (OSError, DistError, Empty) as error:
        why = kept("the machine there has gone") if store else kept("nothing answers there")
        if isinstance(error, socket.gaierror):
            why = kept("no machine of that name is known here")
        elif not store and _answers(nodes):
            why = kept("another program seems to listen there")
        raise YiTuneError(
            "The machines do not meet at {where}: {error}.",
            "--master is the address of the machine with --node-rank 0, and a port that is free there. Can the others "
            "reach it (firewall)? Was the command typed there?",
            where=where,
            error=why,
        ) from None


def _answers(nodes: Nodes) -> bool:
    """Whether anything listens where the machines meet: how torch fails there does not tell."""
    with suppress(OSError), socket.create_connection((nodes.host, nodes.port), timeout=5):
        return True
    return False


def _check_port(nodes: Nodes) -> None:
    """Raise YiTuneError when this machine cannot listen on the port. None listens here: another machine would come."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", nodes.port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise YiTuneError(
                "Port {port} of this machine cannot be had: {why}.",
                "Name another port, on all machines: --master {host}:PORT",
                port=nodes.port,
                why=kept("another program has it") if taken else error.strerror,
                host=nodes.host,
            ) from None


def _wait(store: Any, what: str, count: int, where: str) -> None:
    deadline = time.monotonic() + _TYPED
    while missing := [str(rank) for rank in range(count) if not store.check([f"{what} {rank}"])]:
        if time.monotonic() > deadline:
            raise YiTuneError(
                "At {where} nothing was heard of --node-rank {missing}.",
                "Type the command on all machines.",
                where=where,
                missing=", ".join(missing),
            )
        time.sleep(0.2)
