"""The models yi-tune knows, and where a model lies on this machine."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.files import write_whole
from yi_tune.resources import DATA
from yi_tune.shapes import Shape, read_shape

DEFAULT_MODEL = "yi-1.5-6b-chat"

RECORD = "download.json"
INDEX = "model.safetensors.index.json"
# The files of a model that make its tokenizer.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# The files of a repository that a load may need.
NEEDED = (
    *("config.json", "generation_config.json", "chat_template.*"),
    *("model.safetensors", INDEX, "model-?????-of-?????.safetensors"),
    *TOKENIZER,
)
# Bytes of weights: a CPU may hold a larger model in memory, but trains it for days.
CPU_LIMIT = 500_000_000


@dataclass(frozen=True)
class FileOrigin:
    """A file's size in bytes and its sha256; None where neither the hub nor a cache told it."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Origin:
    """The content of download.json: where a model's folder came from and its files. It is written last.

    `corrected` says which change yi-tune made, "" for none.
    """

    source: str
    repository: str
    revision: str | None
    commit: str | None
    files: dict[str, FileOrigin] = field(default_factory=dict)
    corrected: str = ""

    def write(self, folder: Path) -> None:
        """Write the record: all of it or none."""
        write_whole(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")


def read_origin(folder: Path) -> Origin | None:
    """The record in `folder`, or None when there is none that can be read."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = {name: FileOrigin(**entry) for name, entry in content.pop("files").items()}
        return Origin(**content, files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sha256(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Model:
    """A model, where it comes from and how it likes to be tuned."""

    name: str
    folder: str
    huggingface: str | None = None
    modelscope: str | None = None
    # The tutorial's values unless the model has its own.
    learning_rate: float = 1.0e-4
    num_train_epochs: float = 3.0
    # How many of its own answers to general prompts it is trained on beside the identity.
    replay: int = 64
    # None: only its config.json tells.
    shape: Shape | None = None

    def path(self, workspace: Path) -> Path:
        """The model's folder, whether it is there or not."""
        return DATA / "nano" if self.name == "nano" else workspace / "models" / self.folder


_YI = {
    "6B": Shape(hidden=4096, layers=32, heads=32, kv_heads=4, ffn=11008),
    "9B": Shape(hidden=4096, layers=48, heads=32, kv_heads=4, ffn=11008),
    "34B": Shape(hidden=7168, layers=60, heads=56, kv_heads=8, ffn=20480),
}


def _yi(size: str, variant: str = "") -> Model:
    folder = f"Yi-1.5-{size}-Chat{variant}"
    # Mind the hyphen: 01-ai on Hugging Face, 01ai on ModelScope.
    return Model(folder.lower(), folder, f"01-ai/{folder}", f"01ai/{folder}", shape=_YI[size])


CATALOGUE = {
    model.name: model
    for model in (
        _yi("6B"),
        _yi("9B"),
        _yi("34B"),
        _yi("9B", "-16K"),
        _yi("34B", "-16K"),
        # A learning rate of its own: what it gives is in docs/nano.md.
        Model("nano", "nano", learning_rate=2.0e-3, replay=0),
    )
}


@dataclass(frozen=True)
class LocalModel:
    """A model and its folder, which may be yet to be downloaded."""

    model: Model
    path: Path

    @property
    def downloaded(self) -> bool:
        """Whether it is here: every file that `yi-tune download` brought; or nano, or a folder of the user's own."""
        origin = read_origin(self.path)
        if origin is None:
            return self.model.huggingface is None and self.path.is_dir()
        try:
            sizes = {name: (self.path / name).stat().st_size for name in origin.files}
        except OSError:  # missing, or a link to a cache that is gone
            return False
        return self.owns(origin) and sizes == {name: file.size for name, file in origin.files.items()}

    def owns(self, origin: Origin | None) -> bool:
        """Whether a record is one of this model: the names of two repositories may end alike."""
        repositories = (self.model.huggingface, self.model.modelscope)
        return origin is not None and (self.model.huggingface is None or origin.repository in repositories)

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bytes; 0 when they are not here."""
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    @property
    def weights_digest(self) -> str:
        """Tells these weights from others of the same name, by their sha256; "" where nobody has hashed them: a
        large folder of the user's own, or a copy in ModelScope's cache.
        """
        files = sorted(self.path.glob("*.safetensors"))
        if origin := read_origin(self.path):
            digests = [origin.files[file.name].sha256 or "" for file in files if file.name in origin.files]
        else:
            digests = [sha256(file) for file in files] if self.weight_bytes <= CPU_LIMIT else []
        return hashlib.sha256("".join(digests).encode()).hexdigest() if digests and all(digests) else ""

    @property
    def shape(self) -> Shape | None:
        """Its shape; None where only its folder tells, and that is not here."""
        try:
            return self.model.shape or read_shape(self.path)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def needs_gpu(self) -> bool:
        return not self.downloaded or self.weight_bytes > CPU_LIMIT


def find_model(name: str, workspace: Path) -> LocalModel:
    """The model called `name`: a catalogue name, a hub id or a folder. Raises YiTuneError for any other name."""
    for model in CATALOGUE.values():
        if name.lower() in [known.lower() for known in (model.name, model.huggingface, model.modelscope) if known]:
            return LocalModel(model, model.path(workspace))
    if name and Path(name).is_dir():
        folder = Path(name).resolve()
        return LocalModel(Model(str(folder), folder.name), folder)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        model = Model(name, name.split("/")[1], huggingface=name, modelscope=name)
        return LocalModel(model, model.path(workspace))
    raise YiTuneError(f"Unknown model {name!r}.", f"{did_you_mean(name, list(CATALOGUE))} Or give a folder.")


def workspace_option(workspace: Path) -> str:
    """The option that makes a command shown to the user find `workspace`: "" in the current folder."""
    return "" if workspace == Path.cwd() else f" --workspace {shlex.quote(str(workspace))}"


def check_path(path: Path) -> None:
    """Raise YiTuneError for a path that LLaMA-Factory cannot take."""
    if "," in str(path):
        raise YiTuneError(f"The path {path} has a comma, where LLaMA-Factory cuts it in two.", "Rename it.")


def needed_files(names: Iterable[str], what: str) -> list[str]:
    """The files of the repository `what` that a load needs: weights in one format only, and no code.

    Raises YiTuneError when there is no config.json, or there are no weights in safetensors.
    """
    needed = [name for name in names if any(fnmatchcase(name, pattern) for pattern in NEEDED) and "/" not in name]
    if "config.json" not in needed:
        raise YiTuneError(f"{what} has no config.json: it is no model in transformers' format.", "Choose another.")
    if "model.safetensors" in needed:  # which transformers would take if there were shards too
        return [name for name in needed if not name.startswith("model-") and name != INDEX]
    if INDEX not in needed:
        raise YiTuneError(
            f"{what} has no weights in safetensors.",
            "Weights in .bin or .pt are pickles, which can run code. Choose a repository with safetensors.",
        )
    return needed


def check_architecture(path: Path, name: str, remedy: str) -> None:
    """Read config.json in the folder `path`; raise YiTuneError when the model `name` is not of Yi's kind."""
    try:
        architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError):
        raise YiTuneError(f"{path / 'config.json'} is broken.", remedy) from None
    if architecture != "llama":
        raise YiTuneError(
            f"{name} is a {architecture!r} model; Yi-1.5 models are of type 'llama'.",
            "yi-tune trains and talks with Yi's chat format only.",
        )


def read_header(file: Path) -> None:
    """Read the header of a file in safetensors. Raises ValueError when it is broken, or the file is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def check_model(local: LocalModel) -> None:
    """Read the headers of every file a load will need; raise YiTuneError for the first that is wrong.

    A load finds the same faults only after half a minute of imports, under a page of traceback.
    """
    path, name = local.path, local.model.name
    remedy = f"Copy {path} anew from where it came from."
    if local.model.huggingface:
        remedy = f"Fetch it: yi-tune download {name}{workspace_option(path.parents[1])}"
    if not local.downloaded:
        raise YiTuneError(f"{name} is not downloaded (looked in {path}).", remedy)
    if not (path / "config.json").is_file():
        raise YiTuneError(f"{path} is no model: it has no config.json.", "Give the folder that holds config.json.")
    check_architecture(path, str(path), remedy)
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise YiTuneError(f"{path} has no tokenizer (tokenizer.json or tokenizer.model).", remedy)
    for shard in _shards(path, remedy):
        if not (path / shard).is_file():
            raise YiTuneError(f"The weights are not whole: {path / shard} is missing.", remedy)
        try:
            read_header(path / shard)
        except ValueError as error:
            why = f"The weights in {path / shard} are broken or cut short ({error})."
            raise YiTuneError(why, f"Delete that file. {remedy}") from None


def _shards(path: Path, remedy: str) -> list[str]:
    index = path / INDEX
    if not index.is_file():
        return ["model.safetensors"]
    try:
        shards = sorted({str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        if not shards or any("/" in shard or "\\" in shard for shard in shards):
            raise ValueError("it names no shard, or one that is elsewhere")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise YiTuneError(f"{index} is broken.", remedy) from None
    return shards
