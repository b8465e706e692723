"""`yi-tune` alone in a terminal."""

from pathlib import Path
from typing import Any


def start(workspace: Path) -> None:
    """Print what is here, and the command to type next. nvidia-smi tells the GPU: torch would take seconds."""
    from yi_tune.cli.models import known_models
    from yi_tune.hardware import read_gpus
    from yi_tune.output import out, percent, print_table
    from yi_tune.report import list_runs
    from yi_tune.runs import all_runs

    gpus = [f"{gpu['name']} ({gpu['free']} of {gpu['total']} free)" for gpu in read_gpus()]
    models = [local.model.name for local in known_models(workspace) if local.downloaded]
    runs = list_runs(all_runs(workspace))
    shown = []
    for run in runs[:-4:-1]:
        recall = f", {percent(run['recall'])} of the identity questions right" if run["recall"] is not None else ""
        shown.append(f"{run['run']} ({run['model']}, {run['name'] or 'no name'}): {run['state']}{recall}")
    if len(runs) > len(shown):
        shown.append(f"and {len(runs) - len(shown)} more: yi-tune runs")
    parts = {"GPU": gpus or ["none that nvidia-smi lists"], "Models": models, "Runs": shown or ["none yet"]}
    rows = [(name if line is lines[0] else "", line) for name, lines in parts.items() for line in lines]
    print_table(out, rows)
    out.print("\nNext:")
    print_table(out, [(f"  {command}", what) for command, what in _next(runs, models, bool(gpus))])
    out.print("\nAll commands: yi-tune --help")


def _next(runs: list[dict[str, Any]], models: list[str], gpu: bool) -> list[tuple[str, str]]:
    """The commands that fit, and what each does: for the newest run, or else for the models that are here."""
    from yi_tune.models import DEFAULT_MODEL
    from yi_tune.runs import Run

    nano = ("yi-tune train --model nano", "tune the small model that comes along, in a minute or two")
    for run in reversed(runs):
        name, folder = run["run"], Run(Path(run["folder"]))
        if run["state"] == "running":
            return [("yi-tune runs", f"how far {name} is")]
        if run["state"] in ("interrupted", "failed"):
            if command := folder.record["command"]:
                return [(command, f"go on with {name}")]
            return [("yi-tune runs", f"where {name} stands; the command that started it goes on with it")]
        if run["state"] == "finished":
            return [(f"yi-tune chat --run {name}", "talk to it"), (f"yi-tune check --run {name}", "measure it")]
    if yi := [name for name in models if name != "nano"]:
        model = "" if DEFAULT_MODEL in yi else f" --model {yi[0]}"
        if gpu:
            return [(f"yi-tune train{model}", "it asks for a name, shows its plan, and asks before it starts")]
        return [nano, (f"yi-tune train{model} --device cpu", f"tune {yi[0]} without a GPU, in hours")]
    if gpu:
        return [("yi-tune download", f"fetch {DEFAULT_MODEL}, 12 GB"), nano]
    return [nano, ("yi-tune doctor", f"what {DEFAULT_MODEL} needs on this machine")]
