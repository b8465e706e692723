"""The command line: parses, prints, and hands over. `yi-tune --help` lists the commands.

A module here for each group of commands; in this one the app, and the one place where errors become messages.
"""

import errno
import os
import sys
from gettext import gettext as _
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from yi_tune import __version__
from yi_tune.cli import chat, export, models, runs, serve, train
from yi_tune.errors import YiTuneError
from yi_tune.language import chosen, speak

app = typer.Typer(
    help="Fine-tune Yi-1.5 into an assistant that knows its own name, and measure that it does.",
    epilog="No GPU? train, chat and check take --model nano: a tiny embedded Yi that tunes in a minute on any machine.",
    add_completion=True,
    pretty_exceptions_enable=False,
    # Plain help: rich's takes longer to import than the rest of --help (the test of start-up time).
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_FIRST = (models.download, models.models, train.train, chat.chat, chat.check, export.export)
for command in (*_FIRST, serve.serve, serve.web, models.doctor):
    app.command()(command)
app.add_typer(runs.config_app, name="config")
app.add_typer(runs.runs_app, name="runs")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"yi-tune {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    # main has seen it already, and what is wrong with it is told here.
    lang: Annotated[
        Literal["en", "zh"] | None,
        typer.Option(envvar="YI_TUNE_LANG", help="English or Chinese.", show_default="the locale's"),
    ] = None,
) -> None:
    if context.invoked_subcommand:
        return
    if not sys.stdout.isatty():
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)
    from yi_tune.cli.start import start

    start(Path(os.environ.get("YI_TUNE_WORKSPACE", "")).absolute())


def commands(language: str) -> Any:
    """The whole command line as Click's, to be called, with its help in that language."""
    command: Any = typer.main.get_command(app)
    speak(language)
    if language != "en":
        from yi_tune.cli.help import translate

        translate(command)
    return command


def main() -> None:
    """The entry point, and the one place where errors become messages."""
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding lacks is written as an escape, which in JSON is as good.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        commands(chosen(sys.argv[1:], os.environ))()
    except Exception as error:
        if os.environ.get("YI_TUNE_DEBUG", "0") not in ("", "0"):
            raise
        from yi_tune.output import err, log_traceback

        if not isinstance(error, YiTuneError):
            fault = _("The system refused that.") if isinstance(error, OSError) else _("That is a fault of yi-tune's.")
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                fault = _("The disk is full: free some space.")
            hint = _("{fault} The traceback is in {log}").format(fault=fault, log=log_traceback())
            error = YiTuneError(f"{type(error).__name__}: {error}", hint)
        err.print(_("Error: "), style="bold red", end="")
        err.print(f"{error.message}\n{error.hint}".rstrip())
        sys.exit(1)
