"""`yi-tune config`: the shipped configs."""

from pathlib import Path
from typing import Annotated

import typer

from yi_tune.errors import YiTuneError

app = typer.Typer(help="The shipped LLaMA-Factory configs.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def config_ls() -> None:
    """List the shipped configs."""
    from yi_tune.config import shipped

    configs = shipped()
    width = max(map(len, configs))
    for name, path in configs.items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{name:{width}} {first}")


@app.command("show")
def config_show(name: Annotated[str, typer.Argument(help="A name from yi-tune config ls.")]) -> None:
    """Print a shipped config."""
    from yi_tune.config import find_config, read_text

    print(read_text(find_config(name)), end="")


@app.command("copy")
def config_copy(
    name: Annotated[str, typer.Argument(help="A name from yi-tune config ls.")],
    to: Annotated[Path | None, typer.Argument(help="The new file.", show_default="NAME.yaml")] = None,
) -> None:
    """Copy a shipped config, to be edited and given to `train --config`."""
    from yi_tune.config import find_config, read_text

    source = find_config(name)
    text = read_text(source)
    target = to or Path(source.name)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise YiTuneError(f"{target} is there already.", "Give another file: yi-tune config copy NAME FILE") from None
    except OSError as error:
        raise YiTuneError(f"{target} cannot be written: {error.strerror}.", "Give another file.") from None
    print(target)
