"""Where `--data` is: a file, a sample of one, or a name in LLaMA-Factory's dataset_info.json."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yi_tune.data.forms import ALPACA, OPENAI, SHAREGPT, Form
from yi_tune.errors import YiTuneError, did_you_mean


@dataclass(frozen=True)
class Source:
    """A file of rows, how many of them are drawn (None: all are taken), and their form if a dataset_info.json says."""

    path: Path
    rows: int | None = None
    form: Form | None = None


def find_sources(data: list[str], data_dir: Path | None) -> list[Source]:
    """What `--data FILE`, `FILE:ROWS` or a name in the dataset_info.json of `--data-dir` stands for.

    Raises YiTuneError for what is not there.
    """
    info = _dataset_info(data_dir) if data_dir else {}
    sources = []
    for text in data:
        name, rows = text, None
        if (match := re.fullmatch(r"(.+):(\d+)", text)) and text not in info and not Path(text).exists():
            name, rows = match[1], int(match[2])
            if rows == 0:
                raise YiTuneError(f"--data {text}: a sample of no rows.", "Ask for one at least.")
        if data_dir and name in info:
            source = _listed_source(name, info[name], data_dir)
            sources.append(replace(source, rows=rows if rows is not None else source.rows))
        elif Path(name).is_file():
            sources.append(Source(Path(name), rows))
        elif Path(name).is_dir():
            raise YiTuneError(f"--data {name} is a folder.", "Name its files, each with a --data of its own.")
        else:
            known = did_you_mean(name, sorted(info)) if info else "A path is looked up from the current folder."
            raise YiTuneError(
                f"--data {name}: no such file" + (f", and not in {data_dir}'s dataset_info.json." if data_dir else "."),
                known,
            )
    return sources


def _dataset_info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise YiTuneError(f"{path} cannot be read: {error}.", "--data-dir names the folder that holds it.") from None
    if not isinstance(info, dict) or not all(isinstance(entry, dict) for entry in info.values()):
        raise YiTuneError(f"{path} is not a mapping of names to datasets.", "It is LLaMA-Factory's format.")
    return info


def _listed_source(name: str, entry: dict[str, Any], folder: Path) -> Source:
    """A dataset as LLaMA-Factory's dataset_info.json describes it."""
    if not isinstance(file := entry.get("file_name"), str):
        raise YiTuneError(f"The dataset {name} names no file_name: it is not on this machine.", "Download it first.")
    if entry.get("ranking"):
        raise YiTuneError(f"The dataset {name} holds preferences (ranking).", "yi-tune trains on answers only.")
    if not (folder / file).is_file():
        raise YiTuneError(f"The dataset {name}: there is no file {folder / file}.", "Mend its file_name.")
    formatting = entry.get("formatting", "alpaca")
    forms = {"alpaca": ALPACA, "sharegpt": SHAREGPT, "openai": replace(OPENAI, messages="conversations")}
    if not isinstance(formatting, str) or formatting not in forms:
        raise YiTuneError(f"The dataset {name}: formatting {formatting!r} is none of {', '.join(forms)}.", "Mend it.")
    named_parts = {part: entry.get(part, {}) for part in ("columns", "tags")}
    if wrong := [part for part, names in named_parts.items() if not isinstance(names, dict)]:
        raise YiTuneError(f"The dataset {name}: its {wrong[0]} are no mapping.", "It is LLaMA-Factory's format.")
    samples = entry.get("num_samples")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise YiTuneError(f"The dataset {name}: num_samples is {samples!r}, and no number of rows.", "Mend it.")
    columns, tags = ({key: str(value) for key, value in names.items()} for names in named_parts.values())
    form = forms[formatting]
    named = ("prompt", "query", "response", "history", "system") if formatting == "alpaca" else ("messages", "system")
    changes: dict[str, Any] = {column: columns[column] for column in named if column in columns}
    if formatting != "alpaca":
        roles = {"system_tag": "system", "user_tag": "user", "assistant_tag": "assistant"}
        usual = {role: tag for tag, role in form.roles.items() if formatting == "openai" or tag in ("human", "gpt")}
        changes["roles"] = {tags.get(tag, usual.get(role, role)): role for tag, role in roles.items()}
        changes |= {tag: tags[tag] for tag in ("role_tag", "content_tag") if tag in tags}
    return Source(folder / file, samples, replace(form, **changes))
