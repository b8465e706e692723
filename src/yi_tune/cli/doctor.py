"""`yi-tune doctor`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from yi_tune.cli.options import WorkspaceOption
from yi_tune.models import DEFAULT_MODEL


def doctor(
    *,
    model: Annotated[str, typer.Option(help="The model that is to be trained.")] = DEFAULT_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Can this machine train the model? What is here, what is wrong, and what to do about it.

    Exit status 1 when training could not run.

    yi-tune doctor --model nano
    """
    from yi_tune.doctor import diagnose, print_diagnosis
    from yi_tune.screen import out

    diagnosis = diagnose(model, workspace.absolute())
    if as_json:
        print(json.dumps({"can_train": diagnosis.can_train, **asdict(diagnosis)}, ensure_ascii=False))
    else:
        print_diagnosis(diagnosis, out)
    if not diagnosis.can_train:
        raise typer.Exit(1)
