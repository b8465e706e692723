"""`yi-tune download`, `yi-tune models` and `yi-tune doctor`."""

import json
import os
from gettext import gettext as _
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from yi_tune.cli import complete
from yi_tune.cli.runs import WorkspaceOption
from yi_tune.models import DEFAULT_MODEL, Origin, find_model, known_models, read_origin

# The keys of a model in `models --json`, beside its name; None where they are not known.
_FIGURES = ("parameters", "weight_bytes", "qlora_bytes_estimated", "path", "source", "commit")


def download(
    model: Annotated[
        str, typer.Argument(help="A catalogue name (yi-tune models) or a hub id.", autocompletion=complete.models)
    ] = DEFAULT_MODEL,
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

    Examples:

    \b
        yi-tune download
        yi-tune download yi-1.5-9b-chat --source modelscope
        yi-tune download 01-ai/Yi-1.5-6B --revision main
    """
    from yi_tune.hubs import download as downloading
    from yi_tune.output import err, out

    local = find_model(model, workspace.absolute())
    try:
        downloading.download(local, source, err, revision=revision, verify=verify)
    except KeyboardInterrupt:
        err.print("\n" + _("Interrupted. The same command resumes it."))
        # Not by the usual way out, on which Python waits for every thread: one may wait for a slow hub.
        os._exit(130)
    out.print(_("{model} is in {path}").format(model=local.model.name, path=local.path))


def models(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes and memory in bytes.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """List the models: what they take, and whether they are on this machine.

    Examples:

    \b
        yi-tune models
        yi-tune models --json
    """
    from rich.filesize import decimal

    from yi_tune.hubs.download import cached
    from yi_tune.output import out, print_table
    from yi_tune.plan.memory import MICRO, estimate

    place, shipped = workspace.absolute(), Origin(_("shipped with yi-tune"), "", None, None)
    listed: list[dict[str, Any]] = []
    rows: list[tuple[str, ...]] = [
        (_("model"), _("parameters"), _("on disk"), _("QLoRA memory*"), _("on this machine"))
    ]
    for local in known_models(place):
        found = (local.path, read_origin(local.path) or shipped) if local.downloaded else cached(local.model)
        row: dict[str, Any] = {"name": local.model.name} | dict.fromkeys(_FIGURES)
        sizes, where = ["", "", ""], _("no")
        if shape := local.shape:
            # In the smallest steps, on rows as short as the identity's.
            least = sum(estimate(shape, {"quantization_bit": 4, MICRO: 1}, 128, "cuda").values())
            row |= {"parameters": shape.parameters, "weight_bytes": shape.weight_bytes, "qlora_bytes_estimated": least}
            sizes = [f"{shape.parameters / 1e9:.3f} B", decimal(shape.weight_bytes), decimal(least)]
        if found:
            path, origin = found
            row |= {"path": str(path), "source": origin.source, "commit": origin.commit}
            where = f"{path} ({origin.source})"
        listed.append(row)
        rows.append((local.model.name, *sizes, where))
    if as_json:
        print(json.dumps(listed))
        return
    print_table(out, rows, right=(1, 2, 3))
    out.print("\n" + _("* the least it takes: an estimate, not measured yet on a GPU"))


def doctor(
    *,
    model: Annotated[
        str, typer.Option(help="The model that is to be trained.", autocompletion=complete.models)
    ] = DEFAULT_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Can this machine train the model? What is here, what is wrong, and what to do about it.

    Exit status 1 when training could not run.

    Examples:

    \b
        yi-tune doctor
        yi-tune doctor --model nano
        yi-tune doctor --json
    """
    from yi_tune.doctor import diagnose
    from yi_tune.output import out, padded

    checks = diagnose(model, workspace.absolute())
    can_train = all(check["verdict"] != "error" for check in checks)
    if as_json:
        print(json.dumps({"can_train": can_train, "model": model, "checks": checks}, ensure_ascii=False))
    else:
        names = {"packages": _("packages"), "gpu": _("gpu"), "memory": _("memory")}
        names |= {"disk": _("disk"), "model": _("model"), "hub": _("hub")}
        styles = {"ok": (_("ok"), "green"), "warning": (_("warning"), "yellow"), "error": (_("error"), "bold red")}
        for check in checks:
            verdict, style = styles[check["verdict"]]
            out.print(padded(verdict, 8), style=style, end="")
            out.print(f"{padded(names[check['name']], 14)} {check['found']}")
            if check["remedy"]:
                out.print(f"{'':22} -> {check['remedy']}")
        said = _("{model} can be trained here.") if can_train else _("{model} cannot be trained here yet.")
        out.print("\n" + said.format(model=model))
    if not can_train:
        raise typer.Exit(1)
