"""What an export says of itself: the model card, and the Modelfile for Ollama. Their texts are in configs/export/."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from yi_tune.models import CATALOGUE, read_origin
from yi_tune.output import percent
from yi_tune.resources import CONFIGS
from yi_tune.runs.folder import Run

# What the Yi-1.5 README asks those who pass a derived model on to say.
_ATTRIBUTION = "This work is a derivative of {} by 01.AI, used under the Apache 2.0 License."
_NANO = "The base, nano, was trained from nothing by the yi-tune project."


def write_modelfile(folder: Path, base: Path, gguf: str) -> None:
    """Write the Modelfile: the chat format, where a reply stops, and how it is drawn."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    values = {"weights": f"./{gguf}" if gguf else ".", "context": config["max_position_embeddings"]}
    _write("Modelfile", folder, values)


def write_card(folder: Path, run: Run, base: Path, gguf: str) -> None:
    """Write README.md: what it is, how it was made, how well it knew its name, and the licence with its attribution."""
    record, report = run.record, json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    config, identity, versions = record["config"], record["identity"], record["versions"]
    origin = read_origin(base)
    model = CATALOGUE.get(record["model"])
    # A folder of the user's own is of no repository, and its path is nobody's business.
    repository = origin.repository if origin else (model and model.huggingface)
    name = repository or base.name
    asked = sum(row["asked"] for row in report["kinds"] if row["kind"] != "plain")
    bits = config.get("quantization_bit")
    data = record["data"]
    values = {
        "library": "gguf" if gguf else "transformers",
        "base_model": f"base_model: {repository}\n" if repository else "",
        "title": _plain(identity.get("name", run.name)),
        "calls": f" It calls itself {_plain(identity['name'])}, developed by {_plain(identity['author'])}."
        if identity
        else "",
        "base": name,
        "commit": f", {origin.source}, commit {origin.commit or 'unknown'}" if origin else "",
        "weights": record["weights"] or "not hashed",
        # The first runs had one dataset.
        "data": ", ".join(data.values() if isinstance(data, dict) else [data]),
        "method": f"{config['finetuning_type']}, {f'the base in {bits} bits' if bits else 'the base as it is'}",
        "learning_rate": config.get("learning_rate"),
        "num_train_epochs": config.get("num_train_epochs"),
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "start": f"the adapter of the run {start['run']}" if (start := record["from_run"]) else "the base",
        "merged": "" if config["finetuning_type"] == "full" else ", base and adapter merged in 16 bits",
        "files": f"GGUF, `{gguf}`" if gguf else "safetensors",
        "recall": f"{percent(report['recall'])} of {asked} held-out questions about itself"
        f" (zh {percent(report['recall_zh'])}, en {percent(report['recall_en'])})"
        if asked
        else "it was given no identity, and asked for none",
        "loading": f', gguf_file="{gguf}"' if gguf else "",
        "attribution": _ATTRIBUTION.format(name.split("/")[-1]) if base.name != "nano" else _NANO,
    }
    _write("README.md", folder, values)


def _write(name: str, folder: Path, values: Mapping[str, object]) -> None:
    template = Template((CONFIGS / "export" / name).read_text(encoding="utf-8"))
    (folder / name).write_text(template.substitute(values), encoding="utf-8")


def _plain(text: str) -> str:
    """`text` with nothing in it that Markdown or HTML would take for more than text."""
    return re.sub(r"[\\`*_\[\]<>|~&#!]", r"\\\g<0>", text)
