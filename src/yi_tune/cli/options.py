"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

WorkspaceOption = Annotated[
    Path,
    typer.Option("--workspace", envvar="YI_TUNE_WORKSPACE", help="Where models/ and saves/ are.", show_default="."),
]
RunOption = Annotated[str | None, typer.Option("--run", help="The run's name.", show_default="newest finished")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Only runs of this model.")]
