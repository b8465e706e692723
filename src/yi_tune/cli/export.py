"""`yi-tune export`."""

import json
import shlex
from gettext import gettext as _
from pathlib import Path
from typing import Annotated, Literal

import typer

from yi_tune.cli.runs import ModelOption, RunOption, WorkspaceOption


def export(
    *,
    run_name: RunOption = None,
    model: ModelOption = None,
    to: Annotated[
        Path | None, typer.Option(help="A folder that is empty or not there.", show_default="exports/MODEL/RUN[-QUANT]")
    ] = None,
    format_: Annotated[
        Literal["hf", "gguf"], typer.Option("--format", help="hf: safetensors. gguf: for llama.cpp and Ollama.")
    ] = "hf",
    quant: Annotated[
        Literal["f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"] | None,
        typer.Option(help="With --format gguf. Those with a k need llama.cpp's llama-quantize.", show_default="f16"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload it to this repository of a hub, OWNER/NAME.")
    ] = None,
    push_to: Annotated[
        Literal["huggingface", "modelscope"], typer.Option(help="The hub that --push uploads to.")
    ] = "huggingface",
    public: Annotated[
        bool, typer.Option("--public/--private", help="Who can see a repository that --push makes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: where it is.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Write the tuned model as files that other programs load.

    Adapter and 16-bit base are merged; with the files come the chat template trained with, a Modelfile for Ollama and
    a model card.

    Examples:

    \b
        yi-tune export
        yi-tune export --run identity --format gguf --quant q8_0
        yi-tune export --to my-assistant --push owner/my-assistant --private
    """
    if quant and format_ == "hf":
        raise typer.BadParameter(_("it goes with --format gguf."), param_hint="--quant")
    from yi_tune import export, hubs, loading
    from yi_tune.output import err, out

    where = workspace.absolute()
    hub = None if push is None else hubs.to_push(push_to, push)
    run = loading.find(where, run_name, model)
    kind = (quant or "f16") if format_ == "gguf" else None
    plan = export.plan_export(run, loading.base_config(run), to, kind, where, hub=push_to)
    url = hubs.make(hub, public=public) if hub else None
    export.export(plan, force=force, again=hub is not None)
    if hub:
        hubs.push(hub, plan.target, err)
    if as_json:
        print(json.dumps({"exported": str(plan.target), "gguf": plan.gguf or None, "url": url}, ensure_ascii=False))
        return
    target = plan.target.relative_to(Path.cwd()) if Path.cwd() in plan.target.parents else plan.target
    out.print(_("Exported:  {target}").format(target=target))
    if url:
        out.print(_("Pushed to: {url}").format(url=url))
    out.print(_("Ask it:    yi-tune check --exported {target}").format(target=shlex.quote(str(target))))
