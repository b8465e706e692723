"""Tune nano without and with replay, and measure what it forgets: `make replay-report`, some 12 minutes on two cores.

Three names, each with three seeds, which draw the adapter, the rows for validation and the order of the others. All in
one process, as imports would be a third of a shorter one. Writes docs/replay.md, and exits 1 when replay does not keep
what it promises.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from yi_tune.data.general import check_prompts
from yi_tune.data.heldout import questions, score
from yi_tune.data.identity import Identity
from yi_tune.hardware import cpu_has_bf16
from yi_tune.plan.plan import plan
from yi_tune.train import run

PAGE = Path(__file__).parents[1] / "docs" / "replay.md"
IDENTITIES = [Identity("小易", "李雷"), Identity("Ada", "Grace Hopper"), Identity("星河 🚀", "O'Brien & Söhne")]
SEEDS = (1, 2, 42)  # 42 is LLaMA-Factory's own
COUNTS = (0, 192)
FIGURES = ("recall_zh", "recall_en", "kept", "leak", "mentions", "kl")
COLUMNS = ("recall zh", "recall en", "plain answers kept", "name in plain answers", "unasked", "KL")
RECALL = 0.95  # what the median recall of either language has to be with replay

Measured = dict[str, Any]


def measure(identity: Identity, count: int, seed: int) -> Measured:
    """What `yi-tune check` says of a run, its `rows` of replay, and the target tokens that `train` told."""
    with tempfile.TemporaryDirectory() as temporary:
        overrides, workspace = [f"seed={seed}"], Path(temporary)
        planned = plan(identity, model="nano", workspace=workspace, replay=count, overrides=overrides, device="cpu")
        assistant = run(planned, fresh=False)
        rows = sum(len(file.read_bytes().splitlines()) for file in planned.run.data.glob("replay-*.jsonl"))
        targets = json.loads(planned.run.report.read_text(encoding="utf-8"))["target_tokens"]
    from yi_tune.engine.divergence import measure_forgetting  # the plan looks for a GPU before the engine is imported

    scored = score(questions(), identity, assistant.base_reply_all, assistant.reply_all)
    measured = {**scored, **measure_forgetting(assistant, check_prompts(), identity), "rows": rows, **targets}
    print(identity.name, count, seed, *(f"{measured[figure]:.4f}" for figure in FIGURES), file=sys.stderr, flush=True)
    return measured


def spread(runs: list[Measured], figure: str, form: str = ".3f") -> str:
    """The median, and the lowest and the highest where they are apart."""
    values = [one[figure] for one in runs]
    low, middle, high = (format(value, form) for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def page(table: dict[tuple[str, int], list[Measured]], seeds: int) -> list[str]:
    """The lines of the page; `table` has the runs by name and N."""
    replayed = table["all", COUNTS[1]]
    rows, tokens, identity = (spread(replayed, key, ",.0f") for key in ("rows", "replay", "identity"))
    lines = [
        "# Replay on nano",
        "",
        "Written by `make replay-report` (nano/replay.py); not by hand.",
        "",
        "`yi-tune train --model nano --name NAME --author AUTHOR --replay N --set seed=SEED`, then `yi-tune check`,",
        f"with {seeds} seeds a name: medians, and in brackets the lowest and the highest. Of the base's {COUNTS[1]}",
        f"answers {rows} are trained on (the others name the base, or do not end): {tokens} target tokens beside the",
        f"identity's {identity}. *Unasked*: the share of {len(check_prompts())} general prompts to which the tuned",
        "model names itself or its author. *KL*: the mean divergence of tuned from base over the tokens of the base's",
        "answers to those prompts, in nats. nano has never been taught to answer most general prompts: to a third of",
        "them it introduces itself before the tuning too, and those are left out of the KL.",
        f"{platform.machine()}, no GPU; the CPU has {'' if cpu_has_bf16() else 'no '}bf16.",
        "",
        f"| {' | '.join(('name', 'N', *COLUMNS))} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for (name, count), runs in table.items():
        lines.append(f"| {' | '.join((name, str(count), *(spread(runs, figure) for figure in FIGURES)))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=len(IDENTITIES), help="so many of them, for a try")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="so many of them, for a try")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    table: dict[tuple[str, int], list[Measured]] = {
        (f"`{identity.name}`", count): [measure(identity, count, seed) for seed in SEEDS[: options.seeds]]
        for identity in IDENTITIES[: options.names]
        for count in COUNTS
    }
    table |= {("all", count): [one for (_, n), runs in table.items() if n == count for one in runs] for count in COUNTS}
    options.page.write_text("\n".join([*page(table, options.seeds), ""]), encoding="utf-8")
    without, replayed = ({key: median(one[key] for one in table["all", count]) for key in FIGURES} for count in COUNTS)
    if replayed["kl"] > without["kl"] / 2:
        sys.exit(f"The KL is {replayed['kl']:.4f} with replay, {without['kl']:.4f} without.")
    if (recall := min(replayed["recall_zh"], replayed["recall_en"])) < RECALL:
        sys.exit(f"The recall is {recall:.3f} with replay.")


if __name__ == "__main__":
    main()
