"""Does an exported model know who it is? The held-out questions, asked as another program would ask them."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yi_tune.data.heldout import Score, questions, score
from yi_tune.data.identity import Identity
from yi_tune.errors import YiTuneError
from yi_tune.export.writing import read_record
from yi_tune.output import engine_output_to, log_folder
from yi_tune.progress import Progress


@dataclass(frozen=True)
class ExportedScore:
    """The answers of the exported model in `folder`, and how many of them ran into the limit of their length."""

    folder: Path
    score: Score
    unfinished: int

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        scored = self.score.to_dict()
        answers = [{key: value for key, value in answer.items() if key != "base"} for answer in scored["answers"]]
        return {
            "exported": str(self.folder),
            "identity": vars(self.score.identity),
            **{key: scored[key] for key in ("recall", "recall_zh", "recall_en", "leak")},
            "unfinished": self.unfinished,
            "answers": answers,
        }


def check_exported(folder: Path) -> ExportedScore:
    """Ask the export in `folder`. Raises YiTuneError when it is none, or does not load."""
    record = read_record(folder)
    if not record.identity:
        raise YiTuneError(f"The run {record.run!r} was trained on no identity: there is nothing to ask.")
    log = log_folder() / "load.log"
    log.unlink(missing_ok=True)
    with engine_output_to(log) as console, Progress(console) as progress:
        progress.stage("Loading the exported model")
        try:
            from yi_tune.engine.exported import Exported

            model = Exported(folder, record.gguf)
        except Exception as error:
            traceback.print_exc()
            raise YiTuneError(f"{folder} does not load: {error}", f"The whole story is in {log}") from error
        progress.stage("Asking")
        # It has no base to ask beside it.
        nothing: Callable[[list[Any]], list[str]] = lambda conversations: [""] * len(conversations)  # noqa: E731
        scored = score(questions(), Identity(**record.identity), nothing, model.reply_all)
    return ExportedScore(folder, scored, model.unfinished)
