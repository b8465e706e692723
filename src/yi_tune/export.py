"""A finished run as files that other programs load, and whether those know who they are.

They are written into `.TARGET.export/`, which gets its record (export.json) last and is then renamed to `TARGET/`. The
texts of the model card and of the Modelfile for Ollama are in configs/export/.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from gettext import gettext as _
from pathlib import Path
from string import Template
from typing import Any, Literal

from yi_tune.config import Config
from yi_tune.data.heldout import Score, questions, score
from yi_tune.data.identity import Identity, Message
from yi_tune.errors import YiTuneError
from yi_tune.files import CONFIGS, check_room, disk_full, hold, put_in_place
from yi_tune.models import CATALOGUE, read_origin, sha256
from yi_tune.output import percent
from yi_tune.progress import engine_at_work
from yi_tune.runs import Run

Quant = Literal["f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"]

RECORD = "export.json"
# Of the bytes of 16-bit weights; blocks of 32 share a scale, and at q4_0 embeddings and head are kept in q8_0.
_SHARE = {"f16": 1.0, "q8_0": 34 / 64, "q4_0": 0.35, "q4_k_m": 0.4, "q5_k_m": 0.44, "q6_k": 0.48}
# What llama.cpp's own program makes, of 16 bits in a file of their own.
_QUANTISER, _K_QUANTS = "llama-quantize", ("q4_k_m", "q5_k_m", "q6_k")
# What is written beside the numbers: header, tokenizer, card. Yi's tokenizer takes 4 MB.
_REST = 8_000_000
# What the Yi-1.5 README asks those who pass a derived model on to say.
_ATTRIBUTION = "This work is a derivative of {} by 01.AI, used under the Apache 2.0 License."
_NANO = "The base, nano, was trained from nothing by the yi-tune project."


@dataclass(frozen=True)
class Export:
    """What to export, the model's folder it was trained from, and to where; `quant` None is Hugging Face's format."""

    run: Run
    base: Path
    target: Path
    quant: Quant | None
    hub: str = "huggingface"  # whose name for the base is in the model card

    @property
    def gguf(self) -> str:
        """The name of the GGUF file; "" where there is none."""
        return f"{self.run.name}-{self.quant}.gguf" if self.quant else ""

    @property
    def record(self) -> dict[str, Any]:
        """The content of export.json, but for the list of files."""
        adapter = sha256(self.run.folder / "adapter_model.safetensors")
        return {"run": self.run.name, "identity": self.run.record["identity"], "gguf": self.gguf, "adapter": adapter}

    @property
    def bytes(self) -> int:
        """About how much room it will take in the making, in bytes."""
        weights = sum(file.stat().st_size for file in self.base.glob("*.safetensors"))
        return int(weights * (_SHARE[self.quant or "f16"] + (self.quant in _K_QUANTS))) + _REST


def plan_export(
    run: Run, base: Config, target: Path | None, quant: Quant | None, workspace: Path, hub: str = "huggingface"
) -> Export:
    """What `run`, whose base's chat config is `base`, is exported to. Raises YiTuneError for a quantised base, or when
    the program that makes the `quant` is missing.
    """
    if quant in _K_QUANTS and shutil.which(_QUANTISER) is None:
        raise YiTuneError(
            "--quant {quant} is made by llama.cpp's own program, and there is no {program} on the PATH.",
            "Install llama.cpp, or put the folder of its programs on the PATH. Or take --quant q8_0, which needs none.",
            quant=quant,
            program=_QUANTISER,
        )
    folder = Path(base["model_name_or_path"])
    if "quantization_config" in _read(folder / "config.json"):
        raise YiTuneError(
            "{folder} is quantised already, and an adapter can only be merged into 16-bit weights.",
            "Train the run on the 16-bit model; yi-tune train quantises it while it loads.",
            folder=folder,
        )
    if target is None:
        # As in saves/: runs of two models may have one name.
        target = workspace / "exports" / run.folder.parent.name / (f"{run.name}-{quant}" if quant else run.name)
    return Export(run, folder, target.resolve(), quant, hub)


def read_record(folder: Path) -> dict[str, Any]:
    """The `run`, its `identity`, the `gguf` file ("" where there is none), and all `files` of the export in `folder`.

    Raises YiTuneError when it is none.
    """
    try:
        record = _read(folder / RECORD)
        return {key: record[key] for key in ("run", "identity", "gguf", "files")}
    except (OSError, ValueError, TypeError, KeyError):
        raise YiTuneError(
            "{folder} is no export: it holds no {record}.", "Make one: yi-tune export", folder=folder, record=RECORD
        ) from None


def export(plan: Export, *, force: bool, again: bool = False) -> None:
    """Write the export. Raises YiTuneError, with nothing changed, when that fails, the disk has no room for it, or the
    target is taken (with `force`: by something that is no export). With `again` this very export, if it is there
    already, only gets its model card anew.
    """
    target = plan.target
    if again and not force and (target / RECORD).is_file():
        record = _read(target / RECORD)
        files = {*record.pop("files"), RECORD}
        if record == plan.record and files == {path.name for path in target.iterdir()}:
            return _fill("README.md", target, _card(plan))
    _check_target(target, force=force)
    part, lock = (target.with_name(f".{target.name}.{kind}") for kind in ("export", "lock"))
    with hold(
        lock,
        YiTuneError(
            "Another process is exporting to {target}.", "Wait for it, or take another --to DIR", target=target
        ),
    ):
        try:
            check_room(target.parent, plan.bytes)
            shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
            part.mkdir()
            _write(plan, part)
            put_in_place(part, target)
        except YiTuneError as error:
            raise (disk_full(error, target.parent) or error) from error.__cause__
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink()


def _write(plan: Export, part: Path) -> None:
    identity = plan.run.record["identity"]
    with engine_at_work("export.log", _("Loading transformers"), _("The export failed")) as progress:
        from yi_tune.engine.export import export as write_model

        name, target, quant = identity.get("name", plan.run.name), part / plan.gguf, plan.quant
        if quant not in _K_QUANTS:
            write_model(plan.base, plan.run.folder, target, quant, name, progress)
        else:
            whole = part / "f16.gguf"
            write_model(plan.base, plan.run.folder, whole, "f16", name, progress)
            progress.stage(_("Quantising with {program}").format(program=_QUANTISER))
            status = subprocess.run([_QUANTISER, whole, target, str(quant).upper()], check=False).returncode  # noqa: S603
            if status or not target.is_file():
                raise RuntimeError(f"{_QUANTISER} ended with status {status}")
            whole.unlink()
    context = _read(plan.base / "config.json")["max_position_embeddings"]
    _fill("Modelfile", part, {"weights": f"./{plan.gguf}" if plan.gguf else ".", "context": context})
    _fill("README.md", part, _card(plan))
    files = sorted(path.name for path in part.iterdir())
    record = plan.record | {"files": files}
    (part / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _check_target(target: Path, *, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir() or target.is_mount():  # nothing can be renamed to it
        raise YiTuneError(
            "{target} is a file, or a file system of its own.", "Choose a folder in one: --to DIR", target=target
        )
    content = {path.name for path in target.iterdir()}
    if force and RECORD in content:
        content -= {*read_record(target)["files"], RECORD}
    if content:
        raise YiTuneError(
            "{target} is not empty: it holds {content}.",
            "--force replaces an export, but nothing else. Or choose another place: --to DIR",
            target=target,
            content=", ".join(sorted(content)[:3]),
        )


def _card(plan: Export) -> dict[str, object]:
    """What the model card says: how the model was made, how well it knew its name, and whose work it derives from."""
    record, report = plan.run.record, _read(plan.run.folder / "report.json")
    config, identity, data, start = record["config"], record["identity"], record["data"], record["from_run"]
    origin, model = read_origin(plan.base), CATALOGUE.get(record["model"])
    # A folder of the user's own is of no repository, and its path is nobody's business.
    listed = model and (model.modelscope if plan.hub == "modelscope" else model.huggingface)
    repository = listed or (origin and origin.repository)
    name = origin.repository if origin else (repository or plan.base.name)
    title, author = (_plain(identity.get(key, plan.run.name)) for key in ("name", "author"))
    bits = config.get("quantization_bit")
    asked = sum(row["asked"] for row in report["kinds"] if row["kind"] != "plain")
    right, zh, en = (percent(report[key]) for key in ("recall", "recall_zh", "recall_en"))
    return {
        **config,
        "library": "gguf" if plan.gguf else "transformers",
        "base_model": f"base_model: {repository}\n" if repository else "",
        "title": title,
        "calls": f" It calls itself {title}, developed by {author}." if identity else "",
        "base": f"{name}, {origin.source}, commit {origin.commit or 'unknown'}" if origin else name,
        "weights": record["weights"] or "not hashed",
        # The first runs had one dataset; a hub's are named beside the files made of them.
        "data": ", ".join([*(data.values() if isinstance(data, dict) else [data]), *record.get("commits", {})]),
        "bits": f"{bits} bits" if bits else "the bits it has",
        "versions": ", ".join(f"{package} {version}" for package, version in record["versions"].items()),
        "start": f"the adapter of the run {start['run']}" if start else "the base",
        "recall": f"{right} of {asked} held-out questions about itself (zh {zh}, en {en})" if asked else "not asked",
        "gguf": f', gguf_file="{plan.gguf}"' if plan.gguf else "",
        "attribution": _NANO if plan.base.name == "nano" else _ATTRIBUTION.format(name.split("/")[-1]),
    }


def _fill(name: str, folder: Path, values: Mapping[str, object]) -> None:
    template = Template((CONFIGS / "export" / name).read_text(encoding="utf-8"))
    (folder / name).write_text(template.substitute(values), encoding="utf-8")


def _plain(text: str) -> str:
    """`text` with nothing in it that Markdown or HTML would take for more than text."""
    return re.sub(r"[\\`*_\[\]<>|~&#!]", r"\\\g<0>", text)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_exported(folder: Path) -> Score:
    """Ask the export in `folder` the held-out questions, as another program would.

    Its score tells how many answers are `unfinished`, being too long. Raises YiTuneError when it does not load.
    """
    record = read_record(folder)
    if not record["identity"]:
        raise YiTuneError("The run {run!r} was trained on no identity: there is nothing to ask.", run=record["run"])
    replies: list[Any] = []

    def ask(conversations: list[list[Message]]) -> list[str]:
        replies.extend(model.greedy(conversations))
        return [reply.text.strip() for reply in replies]

    with engine_at_work(
        "load.log", _("Loading the exported model"), _("{folder} does not load").format(folder=folder)
    ) as progress:
        from yi_tune.engine.assistant import load_exported

        model = load_exported(folder, record["gguf"])
        progress.stage(_("Asking"))
        # It has no base to ask beside it.
        scored = score(questions(), Identity(**record["identity"]), lambda asked: [""] * len(asked), ask)
    return scored | {"unfinished": sum(reply.finish != "stop" for reply in replies)}
