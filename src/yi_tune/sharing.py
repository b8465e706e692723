"""The report to share: report.html in the run folder, one file that asks no host and runs no script."""

import base64
import gettext
import hashlib
import json
from gettext import gettext as _
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from yi_tune.output import err, percent, spell
from yi_tune.overview import one_of_each, overview
from yi_tune.report import LANGUAGES, LOW_RECALL
from yi_tune.runs import PLACES, Run

# More points would make the loss curve no clearer.
_POINTS = 1000


def write_page(run: Run) -> Path:
    """Write report.html by what the run folder tells now; returns where it is. Raises OSError if that cannot be."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"_": gettext.gettext, "percent": percent, "spell": spell}
    environment.globals |= {"one_of_each": one_of_each, "low": LOW_RECALL, "languages": LANGUAGES}
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    told = overview(run)
    told["settings"] = {key: setting for key, setting in told["settings"].items() if key not in PLACES}
    place = str(run.folder.parents[2])
    told |= {"why": told["why"].replace(place, "…"), "unknown": [gap.replace(place, "…") for gap in told["unknown"]]}
    told["losses"] = (told["losses"] or [])[:: len(told["losses"] or []) // _POINTS + 1]
    run.write(run.page.name, environment.get_template("report.html.jinja").render(told))
    return run.page


def keep_check(run: Run, record: dict[str, Any], content: dict[str, Any]) -> Path | None:
    """Keep the result of `check` as check.json, and write report.html anew; returns where that is.

    None, and a line says why, if the folder cannot be written, or is of another training by now than `record`.
    """
    try:
        if run.running or run.record != record:
            err.print(_("Note: {folder} is trained anew meanwhile: this result is not kept.").format(folder=run.folder))
            return None
        run.write(run.check.name, json.dumps(content, ensure_ascii=False, indent=2))
        return write_page(run)
    except OSError as error:
        err.print(
            _("Note: the result cannot be kept in {folder}: {reason}.").format(folder=run.folder, reason=error.strerror)
        )
        return None
