"""The command line: parses, prints, and hands over. `yi-tune --help` lists the commands.

A module here for each group of commands; in this one the app, and the one place where errors become messages.
"""

import os
import sys
from typing import Annotated, NoReturn

import typer

from yi_tune.cli import chat, config, doctor, export, models, runs, serve, train
from yi_tune.errors import YiTuneError

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
for command in (
    models.download,
    models.models,
    train.train,
    chat.chat,
    chat.check,
    export.export,
    serve.serve,
    serve.web,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(config.app, name="config")
app.add_typer(runs.app, name="runs")


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
