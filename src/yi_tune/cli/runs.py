"""`yi-tune runs` and `yi-tune config`, and the options that several commands share."""

import json
from gettext import gettext as _
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from yi_tune.cli import complete
from yi_tune.errors import YiTuneError

if TYPE_CHECKING:
    from yi_tune.runs import Run

WorkspaceOption = Annotated[
    Path,
    typer.Option("--workspace", envvar="YI_TUNE_WORKSPACE", help="Where models/ and saves/ are.", show_default="."),
]
RunOption = Annotated[
    str | None,
    typer.Option("--run", help="The run's name.", show_default="newest finished", autocompletion=complete.finished),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Only runs of this model.", autocompletion=complete.models)
]
DeviceOption = Annotated[Literal["auto", "cpu"], typer.Option(help="cpu: without a GPU.")]
GpusOption = Annotated[
    str, typer.Option(metavar="N|all", help="GPUs of this machine to use; with --device cpu, processes.")
]

runs_app = typer.Typer(rich_markup_mode=None)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
_ConfigArgument = Annotated[str, typer.Argument(help="A name from yi-tune config ls.", autocompletion=complete.configs)]
_RunArgument = Annotated[str, typer.Argument(help="The run's name, or MODEL/RUN.", autocompletion=complete.runs)]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; times in UTC.")]
_SameWorkspace = Annotated[Path | None, typer.Option(help="Where saves/ is.", show_default="that of runs")]


@runs_app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    *,
    as_json: _JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """List the runs: what was trained, and how it went.

    Examples:

    \b
        yi-tune runs
        yi-tune runs --json
        yi-tune runs show identity
    """
    context.obj = (workspace, as_json)
    if context.invoked_subcommand:
        return
    from yi_tune.output import err, out
    from yi_tune.report import list_runs, print_runs
    from yi_tune.runs import all_runs

    rows = list_runs(all_runs(workspace.absolute()))
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    elif rows:
        print_runs(rows, out)
    else:
        err.print(_("There is no run in {folder}.").format(folder=workspace.absolute() / "saves"))


def _find(context: typer.Context, name: str, model: str | None, workspace: Path | None) -> "Run":
    from yi_tune.models import find_model
    from yi_tune.runs import find_one

    place = (workspace or context.obj[0]).absolute()
    return find_one(place, name, find_model(model, place) if model else None)


@runs_app.command("show")
def runs_show(
    context: typer.Context,
    name: _RunArgument,
    *,
    model: ModelOption = None,
    as_json: _JsonOption = False,
    workspace: _SameWorkspace = None,
) -> None:
    """Show all that is known of a run: losses, score, answers, settings, versions, and where things are.

    Examples:

    \b
        yi-tune runs show identity
        yi-tune runs show nano/identity --json
    """
    from yi_tune.output import out
    from yi_tune.overview import overview, print_overview

    told = overview(_find(context, name, model, workspace))
    if as_json or context.obj[1]:
        print(json.dumps(told, ensure_ascii=False))
    else:
        print_overview(told, out)


@runs_app.command("compare")
def runs_compare(
    context: typer.Context,
    first: _RunArgument,
    second: _RunArgument,
    *,
    model: ModelOption = None,
    as_json: _JsonOption = False,
    workspace: _SameWorkspace = None,
) -> None:
    """Compare two runs: losses, recall and KL, and the settings that differ.

    Examples:

    \b
        yi-tune runs compare identity second
        yi-tune runs compare nano/identity nano/second --json
    """
    from yi_tune.output import out
    from yi_tune.overview import compare, print_comparison

    compared = compare(*(_find(context, name, model, workspace) for name in (first, second)))
    if as_json or context.obj[1]:
        print(json.dumps(compared, ensure_ascii=False))
    else:
        print_comparison(compared, out)


@runs_app.command("rm")
def runs_rm(
    context: typer.Context,
    name: _RunArgument,
    *,
    model: ModelOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: _SameWorkspace = None,
) -> None:
    """Delete a run: its adapter, checkpoints, data and log.

    Examples:

    \b
        yi-tune runs rm identity
        yi-tune runs rm identity --model nano --yes
    """
    from yi_tune.runs import remove

    run = _find(context, name, model, workspace)
    if not yes:
        typer.confirm(_("Delete {folder}?").format(folder=run.folder), abort=True, err=True)
    remove(run)
    print(_("{folder} is deleted.").format(folder=run.folder))


def count_gpus(gpus: str, device: str) -> int | None:
    """What --gpus says, None for all. Raises typer.BadParameter for what it cannot be."""
    if gpus != "all" and not (gpus.isdecimal() and int(gpus)):
        raise typer.BadParameter(_("--gpus {gpus!r}: give a number of at least 1, or `all`.").format(gpus=gpus))
    if gpus == "all" and device == "cpu":
        raise typer.BadParameter(_("With --device cpu, --gpus is a number of processes."))
    return None if gpus == "all" else int(gpus)


@config_app.callback()
def config() -> None:
    """The shipped LLaMA-Factory configs.

    Examples:

    \b
        yi-tune config ls
        yi-tune config show qlora
        yi-tune config copy tutorial my-own.yaml
    """


@config_app.command("ls")
def config_ls() -> None:
    """List the shipped configs.

    Examples:

    \b
        yi-tune config ls
    """
    from yi_tune.config import shipped, summary

    for name, path in shipped().items():
        print(f"{name:14} {_(summary(path))}")


@config_app.command("show")
def config_show(name: _ConfigArgument) -> None:
    """Print a shipped config.

    Examples:

    \b
        yi-tune config show qlora
        yi-tune config show tutorial
    """
    from yi_tune.config import find_config, read_text

    print(read_text(find_config(name)), end="")


@config_app.command("copy")
def config_copy(
    name: _ConfigArgument,
    to: Annotated[Path | None, typer.Argument(help="The new file.", show_default="NAME.yaml")] = None,
) -> None:
    """Copy a shipped config, to be edited and given to `train --config`.

    Examples:

    \b
        yi-tune config copy tutorial
        yi-tune config copy qlora my-own.yaml
    """
    from yi_tune.config import find_config, read_text

    source = find_config(name)
    text, target = read_text(source), to or Path(source.name)
    if target.exists():
        raise YiTuneError(
            "{target} is there already.", "Give another file: yi-tune config copy NAME FILE", target=target
        )
    target.write_text(text, encoding="utf-8")
    print(target)
