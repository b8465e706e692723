"""What the shell completes. It waits for each answer: none imports torch or LLaMA-Factory, nor more than it needs."""

import re
from importlib.util import find_spec
from pathlib import Path

import typer

# A field of a dataclass; not one that no config can set.
_FIELD = re.compile(r"^    (\w+): [^=\n]+= (?!field\([^)]*init=False)", re.MULTILINE)


def models(context: typer.Context) -> list[str]:
    """The catalogue, and what was downloaded beside it."""
    from yi_tune.models import known_models

    return [local.model.name for local in known_models(_workspace(context))]


def runs(context: typer.Context) -> list[str]:
    """The runs in the workspace, finished or not."""
    from yi_tune.runs import all_runs

    return list(dict.fromkeys(run.name for run in all_runs(_workspace(context))))


def finished(context: typer.Context) -> list[str]:
    """Those of them that have an adapter to talk to."""
    from yi_tune.runs import all_runs

    return list(dict.fromkeys(run.name for run in all_runs(_workspace(context)) if run.finished))


def configs() -> list[str]:
    """The shipped configs."""
    from yi_tune.config import shipped

    return list(shipped())


def training() -> list[str]:
    """Those of them to train by. For a file the shell takes over, when none of them begins with what is typed."""
    from yi_tune.config import shipped

    return [name for name, file in shipped().items() if file.parent.name == "train"]


def config_keys() -> list[str]:
    """Every key of LLaMA-Factory's config, read from its files and transformers': to import them takes seconds."""
    theirs, transformers = (Path(find_spec(name).origin or "").parent for name in ("llamafactory", "transformers"))  # type: ignore[union-attr]
    files = [*(theirs / "hparams").glob("[dfgmt]*_args.py"), *transformers.glob("training_args*.py")]
    return sorted({f"{key}=" for file in files for key in _FIELD.findall(file.read_text(encoding="utf-8"))})


def _workspace(context: typer.Context) -> Path:
    """The workspace that is typed so far, for this command or the one above it, as the shell does not expand it."""
    typed = (context.params.get("workspace"), context.parent and context.parent.params.get("workspace"))
    return next((Path(place) for place in typed if place), Path()).expanduser().absolute()
