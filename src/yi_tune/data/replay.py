"""Replay: the base's own answers to general prompts join the training set, so that it keeps what it knew."""

import json
from dataclasses import dataclass

from yi_tune.data.dataset import Dataset, dataset_of
from yi_tune.data.general import Prompt, introduces_base, replay_prompts
from yi_tune.data.identity import Message, read_jsonl
from yi_tune.errors import YiTuneError
from yi_tune.runs.folder import Run

_FILE = "replay.jsonl"

# Longer answers, in tokens, are not trained on: they would take most of the time of a run that is about a name.
LONGEST = 512


@dataclass(frozen=True)
class BaseAnswer:
    """What the base answers to a prompt; not `finished` when it was too long to be trained on whole."""

    prompt: str
    answer: str
    finished: bool

    @property
    def usable(self) -> bool:
        """Whether to train on it: not on an answer that breaks off or holds half a character, which nano may say and
        no tokenizer gives back, nor on who the base used to be.
        """
        return self.finished and bool(self.answer) and "\ufffd" not in self.answer and not introduces_base(self.answer)

    @property
    def messages(self) -> list[Message]:
        """The conversation that it is."""
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


def choose_prompts(count: int) -> list[Prompt]:
    """`count` prompts for the base, of both languages and all kinds. Raises YiTuneError when there are not as many."""
    known = replay_prompts()
    if not 0 <= count <= len(known):
        raise YiTuneError(f"--replay {count}: there are {len(known)} prompts.", f"Take 0, for none, to {len(known)}.")
    return known[:count]


def kept_answers(run: Run) -> list[BaseAnswer] | None:
    """The answers that the run folder keeps; None when the base has not been asked, or not to the end."""
    file = run.folder / _FILE
    return [BaseAnswer(**row) for row in read_jsonl(file)] if file.exists() else None


def keep_answers(run: Run, answers: list[BaseAnswer]) -> None:
    """Keep all answers, the unusable ones too, in the run folder: a resumed run trains on the same."""
    run.write(_FILE, "".join(json.dumps(vars(answer), ensure_ascii=False) + "\n" for answer in answers))


def replay_dataset(answers: list[BaseAnswer]) -> Dataset:
    """The usable ones as a dataset. Raises YiTuneError when there is none."""
    usable = [answer.messages for answer in answers if answer.usable]
    if not usable:
        raise YiTuneError(
            f"None of the base's {len(answers)} answers can be trained on: they do not end, or say who it is.",
            f"They are in {_FILE} of the run folder. Train without: --replay 0 --fresh",
        )
    return dataset_of("replay", usable)
