"""What more cards and more machines would bring: memory a card, bytes sent and time, by formulas: `make bench-scale`.

Nothing is trained or sent. Writes docs/scale.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.gpus import CARDS, GB, MIB, MODELS, TAKEN
from bench.pages import DOCS, table, text
from yi_tune.config import find_config, read_config
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, Shape
from yi_tune.output import spell
from yi_tune.plan.fit import EFFECTIVE_BATCH, Fit, choose_fit
from yi_tune.plan.memory import ACCUMULATION, MICRO
from yi_tune.plan.sharding import divided

PAGE = DOCS / "scale.md"
# The job: rows long enough to keep a card busy.
ROWS, TOKENS = 10_000, 512


@dataclass(frozen=True)
class Cluster:
    """Machines of the same cards: GB a second, each way, between two cards of one and between two machines."""

    card: str
    within: float
    between: float
    links: str


CLUSTERS = (
    Cluster("NVIDIA A100-SXM4-80GB", 300, 25, "NVLink 3, 300 GB/s each way; InfiniBand HDR, 200 Gb/s = 25 GB/s"),
    Cluster("NVIDIA GeForce RTX 4090", 31.5, 1.25, "PCIe 4.0 x16, 31.5 GB/s each way; Ethernet, 10 Gb/s = 1.25 GB/s"),
)
LAYOUTS = [(nodes, cards) for nodes in (1, 2, 4) for cards in (1, 2, 4, 8)]
_BASE = ("weights", "embeddings and head")
_QLORA = read_config(find_config("qlora"))


@dataclass(frozen=True)
class Job:
    """The job on so many cards in all: how it is divided, and by what all of them send each other."""

    shape: Shape
    fit: Fit
    cards: int
    bandwidth: float  # of the slowest link, in GB a second

    @property
    def rows(self) -> int:
        return self.fit.rows

    @property
    def parts(self) -> dict[str, int]:
        return self.fit.parts or {}

    def whole(self) -> tuple[float, float, float]:
        """Each card has the whole model: bytes of memory a card, bytes that a card sends a step, and seconds."""
        sent = 2 * (self.cards - 1) / self.cards * self.parts["gradients"]
        return sum(self.parts.values()), sent, self._seconds(sent)

    def sharded(self) -> tuple[float, float, float]:
        """Each card has its part of everything, by --shard fsdp: the same three."""
        base = sum(self.parts[name] for name in _BASE)
        whole = {name: size for name, size in self.parts.items() if name != "buckets"}
        memory = sum(divided(whole, "fsdp", self.shape, _QLORA, self.cards).values())
        others = (self.cards - 1) / self.cards
        gathered = 2 * others * base * self.fit.accumulation
        sent = gathered + others * (self.parts["adapter"] + self.parts["gradients"])
        return memory, sent, self._seconds(sent)

    def _seconds(self, sent: float) -> float:
        return self.fit.cost + ROWS / self.rows * sent / (self.bandwidth * GB)


def job(cluster: Cluster, model: str, nodes: int, cards: int) -> Job:
    """One epoch of the job with the default config. Past eight cards each has one row of a step."""
    shape = CATALOGUE[f"yi-1.5-{model}-chat"].shape
    assert shape  # noqa: S101
    memory, bf16 = CARDS[cluster.card]
    total = nodes * cards
    config = _QLORA | {"num_train_epochs": 1}
    if total > EFFECTIVE_BATCH:
        config |= {MICRO: 1, ACCUMULATION: 1}
    hardware = Hardware(cluster.card, bf16, int(memory * MIB - TAKEN), total)
    fit = choose_fit(shape, config, [TOKENS] * ROWS, hardware)
    return Job(shape, fit, total, cluster.within if nodes == 1 else cluster.between)


def rows(cluster: Cluster) -> Iterator[str]:
    """A row of the page for each model and layout."""
    for model in MODELS:
        for nodes, cards in LAYOUTS:
            planned = job(cluster, model, nodes, cards)
            division = f"{planned.fit.micro_batch} x {planned.fit.accumulation}"
            cells = [model.upper(), f"{nodes}", f"{cards}", f"{planned.rows}", division]
            cells.append("with" if planned.fit.checkpointing else "no")
            for memory, sent, seconds in (planned.whole(), planned.sharded()):
                if planned.cards == 1 and cells[-1] not in ("with", "no"):
                    cells += ["", "", ""]
                else:
                    cells += [f"{memory / GB:.1f}", f"{sent / GB:.2f}", spell(seconds)]
            yield f"| {' | '.join(cells)} |"


def lines() -> Iterator[str]:
    """The page."""
    yield from (
        "What more cards bring is arithmetic here: nothing of it is measured yet. yi-tune trains with the whole model",
        "on each card, of one machine (`--gpus N`) or of several (`--nodes N`), or divides it among the cards of one",
        "(`--shard fsdp`). Sharding over several machines is here to show what it would bring; yi-tune refuses it.",
        "",
        f"The job is one epoch of {ROWS:,} rows of {TOKENS} tokens with the default config: 4 bits, LoRA of rank 8 on",
        f"all linear layers. A step has {EFFECTIVE_BATCH} rows. With more cards than that it has one a card, which is",
        "another training: fewer steps, and the learning rate would have to be found anew.",
        "",
        "## Formulas",
        "",
        "With n cards, G for the bytes of the adapter's gradients (float32, 4 a parameter), A for those of the",
        "adapter, W for those of the frozen weights as they are kept, and k micro-steps in a step:",
        "",
        *table("", "whole model on each card", "sharded (FSDP, ZeRO-3)"),
        "| memory a card | the estimate of [memory.md](memory.md), and G again for the buckets in which gradients are "
        "sent | the same without buckets, but the n-th part of W, adapter, gradients and optimiser; and two whole "
        "layers, the embeddings and the head. At the least W, which each card holds while it is loaded |",
        "| sent by a card in a step | 2 (n - 1) / n G, a ring's all-reduce | (n - 1) / n (2 k W + A + G): the weights "
        "are gathered forward and backward, the gradients scattered, the adapter gathered |",
        "| time | steps x (k micro-steps + bytes / bandwidth) | the same |",
        "",
        "- The all-reduce of a ring: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of",
        "  workstations, J. Parallel Distrib. Comput. 69 (2009). What sharding sends: Rajbhandari et al., ZeRO, arXiv",
        "  1910.02054, section 7.",
        "- A micro-step: src/yi_tune/plan/duration.py, held against published figures in [gpus.md](gpus.md). Count on",
        "  a factor of two.",
        "- Bandwidths are those of the data sheets and standards. A real all-reduce reaches less, most of all between",
        "  GeForce cards, which send through the host's memory. That sending goes on beside the computing, as it does",
        "  in part, is not counted either.",
        "- Between machines the ring is as fast as its slowest link: that between two machines.",
        "- Both ways are divided alike. Sharding leaves more memory, and could take larger micro-steps.",
    )
    for cluster in CLUSTERS:
        columns = ("model", "nodes", "cards a node", "rows a step", "division", "checkpointing")
        figures = ("GB a card", "GB sent", "time", "sharded: GB a card", "GB sent", "time")
        yield from ("", f"## {cluster.card}", "", f"{cluster.links}.", "", *table(*columns, *figures), *rows(cluster))
    yield from (
        "",
        "## What it says",
        "",
        "- Whole models send a tenth to a half of a gigabyte a step. Within a machine that is nothing beside the",
        "  computing; between machines on Ethernet of 10 Gb/s it costs some minutes.",
        "- Two cards take half the time of one as long as their micro-steps are arithmetic. Dequantising and starting",
        "  kernels take as long however few the tokens: the gain ends where each card has one short row.",
        "- Sharding a frozen base sends the whole of it twice a micro-step. It is for models that one card does not",
        "  hold, and for links as fast as NVLink; on Ethernet it takes longer than a single card.",
    )


def page() -> str:
    """The content of docs/scale.md."""
    return text("More cards, more machines", "scale", lines())


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(page())


if __name__ == "__main__":
    main()
