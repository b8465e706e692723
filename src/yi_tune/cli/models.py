"""`yi-tune download` and `yi-tune models`."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from yi_tune.cli.options import WorkspaceOption
from yi_tune.models import DEFAULT_MODEL


def download(
    model: Annotated[str, typer.Argument(help="A catalogue name (yi-tune models) or a hub id.")] = DEFAULT_MODEL,
    *,
    source: Annotated[
        Literal["auto", "huggingface", "modelscope"],
        typer.Option(help="auto: Hugging Face, or if only MODELSCOPE_ENDPOINT is set ModelScope, and then the other."),
    ] = "auto",
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit.", show_default="the hub's default branch")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash what is here already, and mend it.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Fetch a model from Hugging Face or ModelScope, for train and chat to find.

    A copy in the cache of either is used where it lies. Broken off, the same command goes on where it stopped. Tokens
    and mirrors are taken from the hubs' own settings: HF_TOKEN, HF_ENDPOINT, MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT.

    yi-tune download yi-1.5-6b-chat --source modelscope
    """
    from yi_tune.hubs import download as downloading
    from yi_tune.models import find_model
    from yi_tune.screen import err, out

    local = find_model(model, workspace.absolute())
    try:
        downloading.download(local, source, err, revision=revision, verify=verify)
    except KeyboardInterrupt:
        err.print("\nInterrupted. The same command goes on where it stopped.")
        # Not by the usual way out, on which Python waits for every thread: one may wait for a slow hub.
        os._exit(130)
    out.print(f"{local.model.name} is in {local.path}", markup=False, soft_wrap=True)


def models(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes and memory in bytes.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """List the models: what they take, and whether they are on this machine.

    yi-tune models --json
    """
    from yi_tune.catalogue import list_models, print_models
    from yi_tune.screen import out

    listed = list_models(workspace.absolute())
    if as_json:
        print(json.dumps([vars(model) for model in listed]))
    else:
        print_models(listed, out)
