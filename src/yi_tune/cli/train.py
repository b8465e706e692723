"""`yi-tune train`."""

import shlex
import sys
from gettext import gettext as _
from pathlib import Path
from typing import Annotated, Literal

import typer

from yi_tune.cli import complete
from yi_tune.cli.runs import GpusOption, WorkspaceOption, count_gpus
from yi_tune.models import DEFAULT_MODEL, workspace_option

Many = list[str] | None  # an option that may be given more than once


def train(
    *,
    name: Annotated[str | None, typer.Option(help="What the assistant is called.")] = None,
    author: Annotated[str | None, typer.Option(help="Who developed it.")] = None,
    name_en: Annotated[str, typer.Option(help="Its name in English.", show_default="--name")] = "",
    author_en: Annotated[str, typer.Option(help="The author in English.", show_default="--author")] = "",
    no_identity: Annotated[bool, typer.Option("--no-identity", help="Train on --data alone, without a name.")] = False,
    data: Annotated[
        Many,
        typer.Option(
            metavar="FILE[:ROWS]|ID[#ROWS]",
            help="Your own rows, or a sample. An ID is a hub's dataset: OWNER/NAME, where no such file or folder is "
            "here; [huggingface:|modelscope:]OWNER/NAME[@REVISION] in any case. Repeatable.",
        ),
    ] = None,
    eval_data: Annotated[
        Many,
        typer.Option(
            metavar="FILE[:ROWS]|ID[#ROWS]", help="Rows to evaluate on, in place of a tenth of all. Repeatable."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder whose dataset_info.json has names for --data.", show_default=False)
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Go on without rows that are unfit.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="A catalogue name, a hub id or a folder.", show_default=DEFAULT_MODEL, autocompletion=complete.models
        ),
    ] = None,
    config: Annotated[
        str, typer.Option(help="A shipped config (yi-tune config ls) or a file.", autocompletion=complete.training)
    ] = "qlora",
    overrides: Annotated[
        Many,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a config key. Repeatable.", autocompletion=complete.config_keys
        ),
    ] = None,
    replay: Annotated[
        int | None,
        typer.Option(
            help="Train on the base's own answers to so many general prompts too, so that it keeps what it knew.",
            show_default="64, nano 0",
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu"],
        typer.Option(help="cpu: without a GPU. Yi-1.5-6B takes hours then; no --replay by itself."),
    ] = "auto",
    gpus: GpusOption = "1",
    nodes: Annotated[int, typer.Option(min=1, help="Machines that train together; --gpus counts those of one.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which of --nodes this is, from 0 on.")] = 0,
    master: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the others reach node 0.", show_default=False)
    ] = "",
    shard: Annotated[
        Literal["fsdp", "zero2", "zero3"] | None,
        typer.Option(help="Divide the model among --gpus: fsdp for 4 bits, zero3 for 16; zero2 all but the weights."),
    ] = None,
    run_name: Annotated[str, typer.Option("--run", help="The run's name.", autocompletion=complete.runs)] = "identity",
    from_run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Start from a finished run's adapter.", autocompletion=complete.finished),
    ] = None,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="Stop when the validation loss no longer falls; keep the best.")
    ] = False,
    report_to: Annotated[Many, typer.Option(metavar="TRACKER", help="tensorboard, wandb, swanlab or mlflow.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the config; train nothing.")] = False,
    chat_after: Annotated[bool, typer.Option("--chat", help="Go on to chat with the tuned model.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Fine-tune a model to its new identity, and ask it who it is.

    The same command again goes on with an unfinished run.

    Examples:

    \b
        yi-tune train --model nano --name 小易 --author 李雷
        yi-tune train --name 小易 --author 李雷 --set num_train_epochs=5
        yi-tune train --no-identity --data rows.jsonl --run own --early-stop
    """
    from yi_tune import train as training
    from yi_tune.config import dump_config
    from yi_tune.data.identity import Identity
    from yi_tune.meeting import Nodes
    from yi_tune.output import err, out
    from yi_tune.plan.plan import plan
    from yi_tune.report import print_changes

    count = count_gpus(gpus, device)
    host, _colon, port = master.rpartition(":")
    reachable = bool(host and port.isdecimal() and 0 < int(port) < 2**16)
    if (nodes > 1) != reachable or node_rank >= nodes:
        raise typer.BadParameter(_("--nodes N goes with --master HOST:PORT and --node-rank from 0 to N-1."))
    asked: list[str] = []

    def ask_for_missing() -> Identity:
        from yi_tune.cli.ask import ask

        who, by = name, author
        if who is None:
            who = ask(_("What is the assistant called?"), lambda answer: Identity(answer, "-"))
            asked.extend(["--name", who])
        if by is None:
            by = ask(_("Who developed it?"), lambda answer: Identity("-", answer))
            asked.extend(["--author", by])
        return Identity(who, by, name_en, author_en)

    identity = None if name is None or author is None else Identity(name, author, name_en, author_en)
    asks = not no_identity and not identity and all(std.isatty() for std in (sys.stdin, sys.stdout, sys.stderr))
    if not asks and (no_identity == any((name, author, name_en, author_en)) or no_identity == bool(identity)):
        raise typer.BadParameter(_("Give --name and --author, or --no-identity alone to train on --data only."))
    planned = plan(
        ask_for_missing if asks else identity,
        workspace=workspace.absolute(),
        model=model,
        config=config,
        overrides=overrides,
        data=data,
        eval_data=eval_data,
        data_dir=data_dir,
        skip_bad_rows=skip_bad_rows,
        run=run_name,
        replay=replay,
        from_run=from_run,
        report_to=report_to,
        early_stop=early_stop,
        device=device,
        gpus=count,
        nodes=Nodes(nodes, node_rank, host, int(port)) if nodes > 1 else None,
        fresh=fresh,
        shard=shard,
        dry_run=dry_run,
    )
    if dry_run:
        print_changes(planned.settings, err)
        print(dump_config(planned.config), end="")
        return
    if asked and (who := planned.identity):
        from yi_tune.cli.ask import agreed

        told, epochs = _("Plan: {model} becomes {name} by {author}."), planned.config.get("num_train_epochs", 3)
        err.print(told.format(model=planned.local.model.name, name=who.name, author=who.author))
        rows = _(" and ").join(_("{rows} rows of {name}").format(**vars(dataset)) for dataset in planned.trained)
        told = _("It sees {rows}, {epochs:g} times. Run: {folder}")
        err.print(told.format(rows=rows, epochs=epochs, folder=planned.run.folder))
        if not agreed(_("Start?")):
            raise typer.Abort
    # What Ctrl-C and a failure leave is what the same command goes on with.
    typed = [*(argument for argument in sys.argv[1:] if argument != "--fresh"), *asked]
    try:
        assistant = training.run(planned, fresh=fresh, command=shlex.join(["yi-tune", *typed]))
    except KeyboardInterrupt:
        again = _("The same command goes on where it stopped.")
        if fresh:
            again = _("The same command without --fresh goes on where it stopped.")
        err.print("\n" + _("Interrupted. {again}").format(again=again))
        raise typer.Exit(130) from None
    where = workspace_option(workspace.absolute())
    out.print("\n" + _("Talk to it:     yi-tune chat --run {run}").format(run=run_name) + where)
    out.print(_("Measure it all: yi-tune check --run {run}").format(run=run_name) + where)
    if chat_after:
        from yi_tune.chat.editor import converse
        from yi_tune.chat.rendering import Screen
        from yi_tune.chat.session import Session

        converse(Session(assistant, Screen(out, err)))
