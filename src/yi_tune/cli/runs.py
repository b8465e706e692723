"""`yi-tune runs`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from yi_tune.cli.options import ModelOption, WorkspaceOption

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; times in UTC.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """List the runs: what was trained, and how it went.

    yi-tune runs --json
    """
    context.obj = workspace
    if context.invoked_subcommand:
        return
    from yi_tune.runs.folder import all_runs
    from yi_tune.runs.listing import list_runs, print_runs
    from yi_tune.screen import err, out

    listed = list_runs(all_runs(workspace.absolute()))
    if as_json:
        print(json.dumps([vars(run) for run in listed], ensure_ascii=False))
    elif listed:
        print_runs(listed, out)
    else:
        err.print(f"There is no run in {workspace.absolute() / 'saves'}.", markup=False, soft_wrap=True)


@app.command("rm")
def runs_rm(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The run's name.")],
    *,
    model: ModelOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Delete a run: its adapter, checkpoints, data and log.

    yi-tune runs rm identity
    """
    from yi_tune.models import find_model
    from yi_tune.runs.folder import find_one, remove

    # `runs --workspace DIR rm NAME` means that folder too.
    place = (context.obj if workspace == Path() else workspace).absolute()
    run = find_one(place, name, find_model(model, place) if model else None)
    if not yes:
        size = sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file())
        typer.confirm(f"Delete {run.folder} ({size / 1e6:.1f} MB)?", abort=True, err=True)
    remove(run)
    print(f"{run.folder} is deleted.")
