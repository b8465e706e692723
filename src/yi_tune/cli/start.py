"""`yi-tune` alone in a terminal."""

from gettext import gettext as _
from pathlib import Path
from typing import Any


def start(workspace: Path) -> None:
    """Print what is here, and the command to type next. nvidia-smi tells the GPU: torch would take seconds."""
    from yi_tune.hardware import read_gpus
    from yi_tune.models import known_models
    from yi_tune.output import out, percent, print_table
    from yi_tune.report import list_runs
    from yi_tune.runs import all_runs

    gpus = [_("{name} ({free} of {total} free)").format(**gpu) for gpu in read_gpus()]
    models = [local.model.name for local in known_models(workspace) if local.downloaded]
    runs = list_runs(all_runs(workspace))
    shown = []
    for run in runs[:-4:-1]:
        recall = _(", {recall} of the identity questions right").format(recall=percent(run["recall"]))
        recall = "" if run["recall"] is None else recall
        told = {**run, "name": run["name"] or _("no name"), "state": _(run["state"])}
        shown.append(_("{run} ({model}, {name}): {state}").format(**told) + recall)
    if len(runs) > len(shown):
        shown.append(_("and {more} more: yi-tune runs").format(more=len(runs) - len(shown)))
    parts = {"GPU": gpus or [_("none that nvidia-smi lists")], _("Models"): models, _("Runs"): shown or [_("none yet")]}
    rows = [(name if line is lines[0] else "", line) for name, lines in parts.items() for line in lines]
    print_table(out, rows)
    out.print("\n" + _("Next:"))
    print_table(out, [(f"  {command}", what) for command, what in _next(runs, models, bool(gpus))])
    out.print("\n" + _("All commands: yi-tune --help"))


def _next(runs: list[dict[str, Any]], models: list[str], gpu: bool) -> list[tuple[str, str]]:
    """The commands that fit, and what each does: for the newest run, or else for the models that are here."""
    from yi_tune.models import DEFAULT_MODEL
    from yi_tune.runs import Run

    nano = ("yi-tune train --model nano", _("tune the small model that comes along, in a minute or two"))
    for run in reversed(runs):
        name, folder = run["run"], Run(Path(run["folder"]))
        if run["state"] == "running":
            return [("yi-tune runs", _("how far {name} is").format(name=name))]
        if run["state"] in ("interrupted", "failed"):
            if command := folder.record["command"]:
                return [(command, _("go on with {name}").format(name=name))]
            stands = _("where {name} stands; the command that started it goes on with it").format(name=name)
            return [("yi-tune runs", stands)]
        if run["state"] == "finished":
            return [(f"yi-tune chat --run {name}", _("talk to it")), (f"yi-tune check --run {name}", _("measure it"))]
    if yi := [name for name in models if name != "nano"]:
        model = "" if DEFAULT_MODEL in yi else f" --model {yi[0]}"
        if gpu:
            return [(f"yi-tune train{model}", _("it asks for a name, shows its plan, and asks before it starts"))]
        in_hours = _("tune {model} without a GPU, in hours").format(model=yi[0])
        return [nano, (f"yi-tune train{model} --device cpu", in_hours)]
    if gpu:
        return [("yi-tune download", _("fetch {model}, 12 GB").format(model=DEFAULT_MODEL)), nano]
    return [nano, ("yi-tune doctor", _("what {model} needs on this machine").format(model=DEFAULT_MODEL))]
