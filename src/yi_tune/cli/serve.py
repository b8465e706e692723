"""`yi-tune serve`."""

from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from yi_tune.cli.options import ModelOption, RunOption, WorkspaceOption


class EngineName(StrEnum):
    """What makes the replies."""

    YI_TUNE = "yi-tune"
    VLLM = "vllm"


def serve(
    *,
    run_name: RunOption = None,
    model: ModelOption = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in, with a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 finds a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="YI_TUNE_API_KEY", help="What clients have to send.", show_default="none here, else a new one"
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web page's origin that may use it, as https://example.org.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Replies made at once.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=0, help="Replies that may wait; beyond, 429.")] = 64,
    engine: Annotated[EngineName, typer.Option(help="vllm starts vLLM's own server.")] = EngineName.YI_TUNE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --engine vllm: print the command, leave.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Serve the tuned model by OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    yi-tune serve --port 8000
    """
    from yi_tune import loading
    from yi_tune.errors import YiTuneError
    from yi_tune.screen import err, out
    from yi_tune.serve import server, vllm
    from yi_tune.serve.app import Names, create_app

    origins = tuple(allow_origin or ())
    key = server.choose_key(host, api_key)
    run = loading.find(workspace.absolute(), run_name, model)
    base = Path(run.record["model_path"]).name
    names = Names(run.name, f"{base}-base" if base == run.name else base)
    made_up = f"API key, shown this once: {key.value}"
    if engine is EngineName.VLLM:
        config = loading.run_config(run)
        folder = run.folder / "vllm"
        vllm.write_files(folder)
        arguments = vllm.command(config, names, host, port, folder, origins)
        if dry_run:
            print(vllm.shown(arguments))
            return
        if key.generated:
            err.print(made_up, markup=False, soft_wrap=True)
        vllm.start(arguments, key)
    if dry_run:
        raise YiTuneError("--dry-run shows the command of another engine.", "yi-tune serve --engine vllm --dry-run")
    with server.listen(host, port) as listening:
        assistant = loading.load_run(run)
        from yi_tune.engine.batching import Batcher

        with closing(Batcher(assistant, max_batch, max_waiting)) as batcher:
            app = create_app(batcher, names, key.value, origins)
            where = f"{names.tuned} answers at {server.url(listening)}/v1   Ctrl-C ends it."
            out.print(where, markup=False, soft_wrap=True)
            if key.generated:
                err.print(made_up, markup=False, soft_wrap=True)
            server.serve(app, listening)
