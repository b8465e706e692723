"""`yi-tune download`, `yi-tune models` and `yi-tune doctor`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from yi_tune.cli.runs import WorkspaceOption
from yi_tune.models import CATALOGUE, DEFAULT_MODEL, LocalModel, Model, Origin, find_model, read_origin


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

    A copy in the cache of either is used where it lies. The same command resumes a download that broke off. Tokens
    and mirrors are taken from the hubs' own settings: HF_TOKEN, HF_ENDPOINT, MODELSCOPE_API_TOKEN, MODELSCOPE_ENDPOINT.

    yi-tune download yi-1.5-6b-chat --source modelscope
    """
    from yi_tune.hubs import download as downloading
    from yi_tune.output import err, out

    local = find_model(model, workspace.absolute())
    try:
        downloading.download(local, source, err, revision=revision, verify=verify)
    except KeyboardInterrupt:
        err.print("\nInterrupted. The same command resumes it.")
        # Not by the usual way out, on which Python waits for every thread: one may wait for a slow hub.
        os._exit(130)
    out.print(f"{local.model.name} is in {local.path}")


def models(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes and memory in bytes.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """List the models: what they take, and whether they are on this machine.

    yi-tune models --json
    """
    from rich.filesize import decimal

    from yi_tune.output import out, print_table

    known = {model.path(workspace.absolute()): model for model in CATALOGUE.values()}
    others = {
        file.parent: Model(origin.repository, file.parent.name, origin.repository, origin.repository)
        for file in sorted((workspace.absolute() / "models").glob("*/download.json"))
        if file.parent not in known and (origin := read_origin(file.parent))
    }
    listed = [_listed(LocalModel(model, path)) for path, model in (known | others).items()]
    if as_json:
        print(json.dumps(listed))
        return
    rows = [("model", "parameters", "on disk", "QLoRA memory*", "on this machine")]
    for row in listed:
        sizes = [row["weight_bytes"], row["qlora_bytes_estimated"]]
        disk, memory = ("" if size is None else decimal(size) for size in sizes)
        parameters = f"{row['parameters'] / 1e9:.3f} B" if row["parameters"] else ""
        place = f"{row['path']} ({row['source']})" if row["path"] else "no"
        rows.append((row["name"], parameters, disk, memory, place))
    print_table(out, rows, right=(1, 2, 3))
    out.print("\n* the least it takes: an estimate, not measured yet on a GPU")


def _listed(local: LocalModel) -> dict[str, Any]:
    """A model of the list; sizes in bytes, None where only its folder tells, and that is not here."""
    from yi_tune.hubs.download import cached
    from yi_tune.plan.memory import MICRO, estimate

    shipped = Origin("shipped with yi-tune", "", None, None)
    found = (local.path, read_origin(local.path) or shipped) if local.downloaded else cached(local.model)
    path, origin = found or (None, None)
    shape = LocalModel(local.model, path or local.path).shape
    # In the smallest steps, on rows as short as the identity's.
    least = shape and estimate(shape, {"quantization_bit": 4, MICRO: 1}, 128, "cuda").total
    return {
        "name": local.model.name,
        "parameters": shape and shape.parameters,
        "weight_bytes": shape and shape.weight_bytes,
        "qlora_bytes_estimated": least,
        "path": path and str(path),
        "source": origin and origin.source,
        "commit": origin and origin.commit,
    }


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
    from yi_tune.doctor import diagnose
    from yi_tune.output import out

    checks = diagnose(model, workspace.absolute())
    can_train = all(check["verdict"] != "error" for check in checks)
    if as_json:
        print(json.dumps({"can_train": can_train, "model": model, "checks": checks}, ensure_ascii=False))
    else:
        for check in checks:
            style = {"ok": "green", "warning": "yellow", "error": "bold red"}[check["verdict"]]
            out.print(f"{check['verdict']:8}", style=style, end="")
            out.print(f"{check['name']:14} {check['found']}")
            if check["remedy"]:
                out.print(f"{'':22} -> {check['remedy']}")
        out.print(f"\n{model} {'can' if can_train else 'cannot'} be trained here{'' if can_train else ' yet'}.")
    if not can_train:
        raise typer.Exit(1)
