"""The models yi-tune knows, how large they are, and where a model lies on this machine."""

import hashlib
import json
import re
import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.files import DATA, write_whole

DEFAULT_MODEL = "yi-1.5-6b-chat"

RECORD = "download.json"
INDEX = "model.safetensors.index.json"
# The files of a model that make its tokenizer.
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
# The files of a repository that a load may need.
NEEDED = (
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json", *TOKENIZER),
    *("model.safetensors", INDEX, "model-?????-of-?????.safetensors"),
)
# Bytes of weights: a CPU trains a larger model for hours, and only where it is asked to.
CPU_LIMIT = 500_000_000
# The linear parts of a layer, by the names that `lora_target` takes.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = ("norm", "input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that say how large a Llama-like model is."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int = 64_000
    head_dim: int | None = None  # None: hidden / heads

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return (self.head_dim or self.hidden // self.heads) * self.heads

    @property
    def key(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.query // self.heads * self.kv_heads

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear parts of a layer, which quantisation makes smaller."""
        h, q, k, f = self.hidden, self.query, self.key, self.ffn
        return dict(zip(LINEAR, ((h, q), (h, k), (h, k), (q, h), (h, f), (h, f), (f, h)), strict=True))

    @property
    def linear_parameters(self) -> int:
        """How many parameters the linear parts of all layers have."""
        return self.layers * sum(wide * high for wide, high in self.linear.values())

    @property
    def parameters(self) -> int:
        """How many parameters it has."""
        return self.linear_parameters + (2 * self.layers + 1 + 2 * self.vocab) * self.hidden

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in bytes, in the 16 bits that they are published in."""
        return 2 * self.parameters


@dataclass(frozen=True)
class FileOrigin:
    """A file's size in bytes and its sha256; None where neither the hub nor a cache told it."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class Origin:
    """The content of download.json: where a model's folder came from and its files. It is written last."""

    source: str
    repository: str
    revision: str | None
    commit: str | None
    files: dict[str, FileOrigin] = field(default_factory=dict)
    corrected: str = ""  # the change that yi-tune made

    def write(self, folder: Path) -> None:
        """Write the record: all of it or none."""
        write_whole(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")

    def whole(self, folder: Path) -> bool:
        """Whether its files are all in `folder`, and as long as they were on the hub."""
        files = [(folder / name, file.size) for name, file in self.files.items()]
        return all(file.is_file() and file.stat().st_size == size for file, size in files)


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


_6B, _9B = (Shape(hidden=4096, layers=layers, heads=32, kv_heads=4, ffn=11008) for layers in (32, 48))
_34B = Shape(hidden=7168, layers=60, heads=56, kv_heads=8, ffn=20480)
_YI = {"6B-Chat": _6B, "9B-Chat": _9B, "34B-Chat": _34B, "9B-Chat-16K": _9B, "34B-Chat-16K": _34B}
# Mind the hyphen: 01-ai on Hugging Face, 01ai on ModelScope.
CATALOGUE = {
    name.lower(): Model(name.lower(), name, f"01-ai/{name}", f"01ai/{name}", shape=shape)
    for name, shape in ((f"Yi-1.5-{name}", shape) for name, shape in _YI.items())
}
# A learning rate of its own: what it gives is in docs/nano.md.
CATALOGUE["nano"] = Model("nano", "nano", learning_rate=2.5e-3, replay=0)


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
        return self.owns(origin) and origin.whole(self.path)

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
        """Tells these weights from others of the same name; "" where nobody hashed them, as in ModelScope's cache."""
        files = sorted(self.path.glob("*.safetensors"))
        if origin := read_origin(self.path):
            digests = [origin.files[file.name].sha256 or "" for file in files if file.name in origin.files]
        else:
            digests = [sha256(file) for file in files] if self.weight_bytes <= CPU_LIMIT else []
        return hashlib.sha256("".join(digests).encode()).hexdigest() if digests and all(digests) else ""

    @property
    def shape(self) -> Shape | None:
        """Its shape; None where only its folder tells, and that is not here."""
        if self.model.shape:
            return self.model.shape
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        try:
            config = {"head_dim": None} | json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            return Shape(*[config[key] for key in (*keys, "vocab_size", "head_dim")])
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
    raise YiTuneError(
        "Unknown model {name!r}.", "{known} Or give a folder.", name=name, known=did_you_mean(name, list(CATALOGUE))
    )


def known_models(workspace: Path) -> list[LocalModel]:
    """The catalogue, and what was downloaded beside it by a hub id."""
    records = (read_origin(file.parent) for file in sorted((workspace / "models").glob("*/download.json")))
    known: dict[Path, LocalModel] = {}
    for name in (*CATALOGUE, *(str(record.repository) for record in records if record)):
        with suppress(YiTuneError):  # a record that somebody has changed
            local = find_model(name, workspace)
            known[local.path] = local
    return list(known.values())


def workspace_option(workspace: Path) -> str:
    """The option that makes a command shown to the user find `workspace`: "" in the current folder."""
    return "" if workspace == Path.cwd() else f" --workspace {shlex.quote(str(workspace))}"


def check_path(path: Path) -> None:
    """Raise YiTuneError for a path that LLaMA-Factory cannot take."""
    if "," in str(path):
        raise YiTuneError("The path {path} has a comma, where LLaMA-Factory cuts it in two.", "Rename it.", path=path)
