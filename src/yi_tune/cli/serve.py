"""`yi-tune serve` and `yi-tune web`."""

import re
from contextlib import closing
from gettext import gettext as _
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from yi_tune.cli.runs import ModelOption, RunOption, WorkspaceOption
from yi_tune.errors import YiTuneError

if TYPE_CHECKING:
    from yi_tune.runs import Run

HostOption = Annotated[str, typer.Option(help="0.0.0.0 lets other machines in, with a key.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="0 finds a free one.")]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="YI_TUNE_API_KEY", help="What clients have to send.", show_default="none here, else a new one"),
]


def _check_origins(given: list[str] | None) -> list[str]:
    """The origins as browsers write them. Raises BadParameter for what is none."""
    for origin in given or []:
        if not re.fullmatch(r"[a-z][a-z\d+.-]*://([^/?#@:*\[\]\s]+|\[[\da-f:]+\])(:(\d+|\*))?", origin.lower()):
            said = _(
                "{origin!r} is no origin. Write it as https://example.org, without a path; :* is any port."
            ).format(origin=origin)
            raise typer.BadParameter(said)
    return [origin.lower() for origin in given or []]


OriginOption = Annotated[
    list[str] | None,
    typer.Option(
        callback=_check_origins, help="A page's origin that may use it: https://example.org, http://localhost:*."
    ),
]
# Replies made at once, and how many more may wait.
_LIMITS = 16, 64


def serve(
    *,
    run_name: RunOption = None,
    model: ModelOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key: KeyOption = None,
    allow_origin: OriginOption = None,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Replies made at once.")] = _LIMITS[0],
    max_waiting: Annotated[int, typer.Option(min=0, help="Replies that may wait; beyond, 429.")] = _LIMITS[1],
    engine: Annotated[Literal["yi-tune", "vllm"], typer.Option(help="vllm starts vLLM's own server.")] = "yi-tune",
    exported: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --engine vllm: serve what `export` wrote, not a run.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --engine vllm: print the command, leave.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Serve the tuned model by OpenAI's API: /v1/chat/completions, /v1/models.

    Examples:

    \b
        yi-tune serve
        yi-tune serve --host 0.0.0.0 --port 8080 --api-key secret
        yi-tune serve --engine vllm --exported exports/nano/identity --dry-run
    """
    origins = tuple(allow_origin or ())
    if engine == "vllm" and any(origin.endswith(":*") for origin in origins):
        raise typer.BadParameter(_("vLLM takes no :* in it. Name the port."), param_hint="--allow-origin")
    if exported is not None and (run_name or model):
        raise typer.BadParameter(_("no --run and no --model beside it."), param_hint="--exported")
    if engine == "yi-tune" and (dry_run or exported is not None):
        raise YiTuneError("--dry-run and --exported are for another engine.", "Add: --engine vllm")
    if engine == "vllm" and (max_batch, max_waiting) != _LIMITS:
        raise typer.BadParameter(_("vLLM sees to its queue itself."), param_hint="--max-batch, --max-waiting")
    from yi_tune import loading

    if exported is None:
        run = loading.find(workspace.absolute(), run_name, model)
        if engine == "yi-tune":
            return _serve(run, host, port, api_key, (max_batch, max_waiting), origins=origins)
    from yi_tune.serve import server, vllm

    command = vllm.command(exported or run, host, port, origins)
    key = server.choose_key(host, api_key)
    if not dry_run:
        vllm.start(command, key)
    print(vllm.shown(command, key))


def web(
    *,
    run_name: RunOption = None,
    model: ModelOption = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key: KeyOption = None,
    allow_origin: OriginOption = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Talk to the tuned model, and to the base beside it, on a page in the browser.

    Examples:

    \b
        yi-tune web --open
        yi-tune web --run identity --port 0
    """
    from yi_tune import loading

    run = loading.find(workspace.absolute(), run_name, model)
    _serve(run, host, port, api_key, _LIMITS, launch=open_browser, page=True, origins=tuple(allow_origin or ()))


def _serve(
    run: "Run", host: str, port: int, key: str | None, limits: tuple[int, int], *, launch: bool = False, **app: Any
) -> None:
    """Answer until a signal ends it; `limits` as the Worker takes them, `app` as create_app does."""
    from yi_tune.loading import load_run
    from yi_tune.output import out
    from yi_tune.serve import server
    from yi_tune.serve.app import create_app, names_of
    from yi_tune.serve.worker import Worker

    key = server.choose_key(host, key)
    with server.listen(host, port) as listening, closing(Worker(load_run(run), *limits)) as worker:
        where = f"{server.url(listening)}/{'' if 'page' in app else 'v1'}"
        out.print(_("{run} answers at {where}   Ctrl-C ends it.").format(run=run.name, where=where))
        if launch:
            typer.launch(where)
        server.serve(create_app(worker, names_of(run), key, **app), listening, worker.close)
