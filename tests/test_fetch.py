"""What goes wrong on the way from a hub: what the user is told, and what is never taken for a model.

Every case asks a server that misbehaves, then again once it has come to its senses. Most of a case is waiting, so
they all run at once; each test looks at its own.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.hubs import ALWAYS, HUBS, LOGIN, Fault, Hub, asking
from tests.hubs.models import UNWANTED, nano_tokenizer, sharded
from yi_tune.errors import YiTuneError
from yi_tune.hubs.download import from_hubs
from yi_tune.models import check_model, find_model

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
SHARD = "model-00002-of-00005.safetensors"
INDEX = "model.safetensors.index.json"
# Where the byte lies at which things go wrong; a shard has some 300,000.
BYTE = 100_000
# In a file's name, the folder that a case runs in.
HERE = "HERE"
RETRY_AFTER = {"Retry-After": "1"}
GATED = {"X-Error-Code": "GatedRepo"}
UNKNOWN = {"X-Error-Code": "RepoNotFound"}


@dataclass(frozen=True)
class Case:
    """Faults, and the words that the user must read (in any case), got over or not."""

    faults: tuple[Fault, ...] = ()
    ends_well: bool = True
    says: tuple[str, ...] = ()
    files: dict[str, bytes | None] = field(default_factory=dict)
    listed_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def of_the_source(self) -> bool:
        """Whether the files themselves are at fault, so that no second try can help."""
        return bool(self.files)

    @property
    def curable(self) -> bool:
        """Whether it fails, and ends well once the hub has come to its senses."""
        return not self.ends_well and not self.of_the_source


def body(kind: str, times: int = 1, name: str = SHARD, **options: object) -> Case:
    return Case((Fault(f"*{name}*", kind, times, at=BYTE, **options),))  # type: ignore[arg-type]


def status(number: int, times: int = 1, pattern: str = "*", **options: object) -> Case:
    return Case((Fault(pattern, "status", times, status=number, **options),))  # type: ignore[arg-type]


def says(case: Case, *words: str) -> Case:
    return replace(case, says=words)


def fails(case: Case, *words: str) -> Case:
    return replace(case, ends_well=False, says=words)


CASES = {
    "cut once": body("cut"),
    "cut always": fails(body("cut", ALWAYS), "breaks off"),
    "cut once, and no ranges": Case((*body("cut").faults, *body("whole", ALWAYS).faults)),
    "reset once": body("reset"),
    "reset always": fails(body("reset", ALWAYS), "breaks off"),
    "stalls a moment": body("stall", seconds=0.5),
    "stalls once": body("stall"),
    "stalls always": fails(body("stall", ALWAYS)),
    "wrong byte once": says(body("flip"), f"{SHARD} came with another checksum", "Fetching it once more"),
    "wrong byte always": fails(body("flip", ALWAYS), SHARD, "checksum"),
    "wrong byte in config.json": fails(
        Case((Fault("*/config.json*", "flip", ALWAYS, at=9), Fault("*=config.json*", "flip", ALWAYS, at=9))),
        "config.json",
    ),
    "short once": says(body("short"), f"{SHARD} came in another size", "Fetching it once more"),
    "short always": fails(body("short", ALWAYS), SHARD, "size"),
    "listed too large": fails(Case(listed_sizes={SHARD: 999_999}), SHARD, "size"),
    "listed too small": fails(Case(listed_sizes={SHARD: BYTE}), SHARD, "size"),
    "429 once": status(429, pattern=f"*{SHARD}*", headers=RETRY_AFTER, method="GET"),
    "429 always": fails(status(429, ALWAYS, headers=RETRY_AFTER), "too many requests"),
    "500 once on a file": status(500, pattern=f"*{SHARD}*", method="GET"),
    "500 always": fails(status(500, ALWAYS), "500"),
    "500 always on a file": fails(status(500, ALWAYS, f"*{SHARD}*"), "500"),
    "401": fails(status(401, ALWAYS), "log in", "TOKEN"),
    "403, gated": fails(status(403, ALWAYS, headers=GATED), "gated", "TOKEN"),
    "403 on files only": fails(status(403, ALWAYS, f"*{SHARD}*", headers=GATED), "gated", "TOKEN"),
    "404, no such model": fails(status(404, ALWAYS, headers=UNKNOWN), "there is no"),
    "404 on a shard": fails(status(404, ALWAYS, f"*{SHARD}*"), SHARD),
    "404 on the tokenizer": fails(status(404, ALWAYS, "*tokenizer.json*"), "tokenizer.json"),
    "a page in place of the list": fails(Case((Fault("*", "redirect", ALWAYS, to=LOGIN),))),
    "a page in place of a shard": fails(Case((Fault(f"*{SHARD}*", "redirect", ALWAYS, to=LOGIN),)), SHARD),
    "../ in the list": fails(Case(files={"../../outside.safetensors": b"!"}), "../../outside.safetensors"),
    "an absolute name": fails(Case(files={f"{HERE}/outside.safetensors": b"!"}), "/outside.safetensors"),
    "no safetensors": fails(Case(files={name: None for name in MODEL if "safetensors" in name}), "safetensors"),
    "a shard is not listed": fails(Case(files={SHARD: None}), SHARD),
    "a broken header": fails(Case(files={SHARD: b"\xff" * 9 + MODEL[SHARD][9:]}), SHARD),
    "a broken index": fails(Case(files={INDEX: b"{"}), INDEX),
    "no config.json": fails(Case(files={"config.json": None}), "config.json"),
    "another architecture": fails(
        Case(files={"config.json": MODEL["config.json"].replace(b'"llama"', b'"mamba"')}), "mamba"
    ),
}


@dataclass(frozen=True)
class Outcome:
    """How a download went: how it failed, all that was said, and what lay there afterwards under the files' names."""

    failed: bool
    said: str
    seconds: float
    taken_for_a_model: bool
    files: dict[str, bytes]


def download(hub: Hub, name: str, folder: Path) -> Outcome:
    """Download from the hub into the workspace `folder`."""
    local = find_model("yi-1.5-6b-chat", folder)
    console = Console(file=StringIO(), width=1000)
    began, failed = time.monotonic(), False
    try:
        from_hubs(local, [asking(hub.address, name)], console)
    except YiTuneError as error:
        console.print(error.message, error.hint, markup=False)
        failed = True
    seconds = time.monotonic() - began
    try:
        check_model(local)
        taken = True
    except YiTuneError:
        taken = False
    places = [place for place in (local.path, local.path.with_name(f"{local.path.name}.part")) if place.is_dir()]
    lying = {name: (place / name).read_bytes() for place in places for name in MODEL if (place / name).is_file()}
    return Outcome(failed, console.file.getvalue(), seconds, taken, lying)  # type: ignore[attr-defined]


def run(hub_name: str, case: Case, folder: Path) -> tuple[Outcome, Outcome | None]:
    """Download with the faults, then without where that may help."""
    (folder / "workspace" / "models").mkdir(parents=True)
    served = (MODEL | UNWANTED | case.files).items()
    files = {name.replace(HERE, str(folder)): text for name, text in served if text is not None}
    with HUBS[hub_name](files) as hub:
        hub.faults = [replace(fault) for fault in case.faults]
        hub.listed_sizes = case.listed_sizes
        first = download(hub, hub_name, folder / "workspace")
        assert not list(folder.rglob("*outside*"))
        if not case.curable:
            return first, None
        hub.faults, hub.listed_sizes = [], {}
        return first, download(hub, hub_name, folder / "workspace")


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], "Future[tuple[Outcome, Outcome | None]]"]]:
    """All the cases that are asked for, begun."""
    asked = [item.callspec.params for item in request.session.items if getattr(item, "module", None) is request.module]
    with ThreadPoolExecutor(32) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")  # what is given up on is given up on soon
        patch.setattr("yi_tune.hubs.fetch._PAUSES", (0.1, 0.2, 0.3, 0.4))
        yield {
            (params["hub_name"], params["name"]): pool.submit(
                run, params["hub_name"], CASES[params["name"]], tmp_path_factory.mktemp("fault")
            )
            for params in asked
        }


@pytest.mark.parametrize("hub_name", HUBS)
@pytest.mark.parametrize("name", CASES)
def test_fault(
    outcomes: dict[tuple[str, str], "Future[tuple[Outcome, Outcome | None]]"], hub_name: str, name: str
) -> None:
    case, (first, again) = CASES[name], outcomes[hub_name, name].result()
    assert first.failed is not case.ends_well, first.said
    for words in case.says:
        assert words.lower() in first.said.lower()
    assert first.taken_for_a_model is case.ends_well
    if not case.of_the_source:
        # Whatever lies under a file's own name is that file.
        assert {name: MODEL[name] for name in first.files} == first.files
        assert not case.ends_well or first.files == MODEL
    if again is not None:
        assert not again.failed, again.said
        assert again.files == MODEL
    # The clients' own last word is a minute and more.
    assert first.seconds < 60
