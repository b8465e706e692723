"""The command line: parses, prints, and hands over. `yi-tune --help` lists the commands."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from yi_tune import cli_config
from yi_tune.errors import YiTuneError
from yi_tune.models import DEFAULT_MODEL, workspace_option

app = typer.Typer(
    help="Fine-tune Yi-1.5 into an assistant that knows its own name, and measure that it does.",
    epilog="No GPU? train, chat and check take --model nano: a tiny embedded Yi that tunes in a minute on any machine.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    # Plain help: rich's takes longer to import than the rest of --help (the test of start-up time).
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_config.app, name="config")

WorkspaceOption = Annotated[
    Path,
    typer.Option("--workspace", envvar="YI_TUNE_WORKSPACE", help="Where models/ and saves/ are.", show_default="."),
]
RunOption = Annotated[str | None, typer.Option("--run", help="The run's name.", show_default="newest finished")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Only runs of this model.")]


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(f"yi-tune {importlib.metadata.version('yi-tune')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
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
    from yi_tune import download as hub
    from yi_tune.models import find_model
    from yi_tune.screen import err, out

    local = find_model(model, workspace.absolute())
    try:
        hub.download(local, source, err, revision=revision, verify=verify)
    except KeyboardInterrupt:
        err.print("\nInterrupted. The same command goes on where it stopped.")
        # Not by the usual way out, on which Python waits for every thread: one may wait for a slow hub.
        os._exit(130)
    out.print(f"{local.model.name} is in {local.path}", markup=False, soft_wrap=True)


@app.command()
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


@app.command()
def train(
    *,
    name: Annotated[str, typer.Option(help="What the assistant is called.")],
    author: Annotated[str, typer.Option(help="Who developed it.")],
    name_en: Annotated[str, typer.Option(help="Its name in English.", show_default="--name")] = "",
    author_en: Annotated[str, typer.Option(help="The author in English.", show_default="--author")] = "",
    model: Annotated[str, typer.Option(help="A catalogue name, a hub id or a folder.")] = DEFAULT_MODEL,
    config: Annotated[str, typer.Option(help="A shipped config (yi-tune config ls) or a file.")] = "qlora",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config. Repeatable."),
    ] = None,
    run_name: Annotated[str, typer.Option("--run", help="The run's name.")] = "identity",
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a run of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the config; train nothing.")] = False,
    chat_after: Annotated[bool, typer.Option("--chat", help="Go on to chat with the tuned model.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Fine-tune a model to its new identity, and ask it who it is.

    The same command again goes on with an unfinished run.

    yi-tune train --model nano --name 小易 --author 李雷
    """
    from yi_tune import training
    from yi_tune.identity import Identity
    from yi_tune.screen import err, out

    plan, conversations = training.plan(
        Identity(name, author, name_en, author_en),
        model=model,
        config=config,
        overrides=overrides or [],
        run=run_name,
        workspace=workspace.absolute(),
        dry_run=dry_run,
    )
    if dry_run:
        from yi_tune.config import dump_config
        from yi_tune.report import print_changes

        print_changes(plan, err)
        print(dump_config(plan.config), end="")
        return
    try:
        assistant = training.run(plan, conversations, fresh=fresh)
    except KeyboardInterrupt:
        again = "The same command without --fresh" if fresh else "The same command"
        err.print(f"\nInterrupted. {again} goes on where it stopped.")
        raise typer.Exit(130) from None
    where = workspace_option(workspace.absolute())
    out.print(f"\nTalk to it:     yi-tune chat --run {run_name}{where}", soft_wrap=True, markup=False)
    out.print(f"Measure it all: yi-tune check --run {run_name}{where}", soft_wrap=True, markup=False)
    if chat_after:
        from yi_tune import repl
        from yi_tune.sampling import Sampling

        chatting = repl.Conversation(lambda messages: assistant.stream(messages, Sampling()))
        repl.interactive(chatting, repl.ask, err, sys.stdout)


@app.command()
def chat(
    *,
    run_name: RunOption = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model; with --base, that model.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model, without the adapter.")] = False,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this, print the answer, leave.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Each line of stdin is a conversation; answer in JSON lines.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy: the same question has the same answer.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from this share of the probability.")] = 0.8,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, repeating itself is unlikelier.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 1024,
    seed: Annotated[int | None, typer.Option(help="Makes drawing repeatable.")] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Talk to the tuned model.

    In a pipe each line is a turn of one chat; with --json each line is a conversation of its own.

    echo 你是谁 | yi-tune chat
    """
    from yi_tune import loading, repl
    from yi_tune.sampling import Sampling
    from yi_tune.screen import err

    sampling = Sampling(temperature, top_p, repetition_penalty, max_new_tokens, seed)
    config = loading.chat_config(workspace.absolute(), run_name, model, base=base)
    assistant = loading.load(config)

    def reply(messages: list[dict[str, str]]) -> repl.Pieces:
        return assistant.stream(messages, sampling)

    if as_json:
        lines = [prompt] if prompt is not None else repl.stdin_lines()
        repl.piped_json(reply, system, lines, sys.stdout)
    elif prompt is not None:
        repl.piped(repl.Conversation(reply, system), [prompt], sys.stdout)
    elif sys.stdin.isatty():
        repl.interactive(repl.Conversation(reply, system), repl.ask, err, sys.stdout)
    else:
        repl.piped(repl.Conversation(reply, system), repl.stdin_lines(), sys.stdout)


@app.command()
def check(
    *,
    run_name: RunOption = None,
    model: ModelOption = None,
    min_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Exit 1 when fewer identity questions are right, in zh or en.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every answer.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Does it know who it is? Ask base and tuned model the held-out questions.

    yi-tune check --min-recall 0.95
    """
    from yi_tune import loading
    from yi_tune.heldout import questions, score
    from yi_tune.identity import Identity
    from yi_tune.report import percent, print_score
    from yi_tune.screen import err, out

    run = loading.find(workspace.absolute(), run_name, model)
    identity = Identity(**run.record["identity"])
    assistant = loading.load(loading.run_config(run))
    scored = score(questions(), identity, assistant.base_reply_all, assistant.reply_all)
    if as_json:
        print(json.dumps({"run": str(run.folder), "identity": vars(identity), **scored.to_dict()}, ensure_ascii=False))
    else:
        print_score(scored, run.record["config"], out)
    recall = scored.lowest_recall
    if recall is not None and recall < min_recall:
        err.print(
            f"[red]Below --min-recall {min_recall}:[/] {percent(recall)} of the questions in one language are right."
        )
        raise typer.Exit(1)


def main() -> None:
    """The entry point, and the one place where errors become messages."""
    debug = os.environ.get("YI_TUNE_DEBUG", "") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks is written as an escape, which in JSON is as good.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except YiTuneError as error:
        if debug:
            raise
        _complain(error.message, error.hint)
    except OSError as error:
        if debug:
            raise
        _complain(str(error), f"The system said that. Where it happened is in {_traceback_file()}")
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}"
        _complain(what, f"That is a fault of yi-tune's. The whole of it is in {_traceback_file()}")


def _traceback_file() -> str:
    from yi_tune.output import log_traceback

    return log_traceback()


def _complain(what: str, remedy: str) -> NoReturn:
    from rich.text import Text

    from yi_tune.screen import err

    err.print(Text.assemble(("Error: ", "bold red"), what), soft_wrap=True)
    if remedy:
        err.print(Text(remedy), soft_wrap=True)
    sys.exit(1)
