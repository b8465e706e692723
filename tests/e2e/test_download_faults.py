"""What goes wrong on the way from a hub: what the user is told, and what is never taken for a model.

Every case runs the real client against a server that misbehaves, then runs again against one that has
come to its senses. Most of a case is waiting, so they all run at once; each test looks at its own.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.e2e.conftest import Done, Workspace
from tests.hubs import ALWAYS, HUBS, LOGIN, Fault
from tests.hubs.machine import environment
from tests.hubs.models import UNWANTED, nano_tokenizer, sharded
from yi_tune.errors import YiTuneError
from yi_tune.models import check_model, find_model

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
SHARD = "model-00002-of-00005.safetensors"
INDEX = "model.safetensors.index.json"
# Where the byte lies at which things go wrong; a shard has some 300,000.
BYTE = 100_000
# The clients' own variables, so that what is given up on is given up on soon.
IMPATIENT = {
    "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    "HF_HUB_ETAG_TIMEOUT": "3",
    "MODELSCOPE_DOWNLOAD_TIMEOUT": "2",
    "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "2",
}
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
    "stalls a moment": body("stall", seconds=1),
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
    """How a case went: the run, what lay there after it, and the run after the hub had come to its senses."""

    done: Done
    seconds: float
    taken_for_a_model: bool
    files: dict[str, bytes]
    strays: list[Path]
    again: Done | None
    files_again: dict[str, bytes]


def lying(folder: Path) -> dict[str, bytes]:
    """The model's files that lie in `folder`, or beside it while it is not whole, under their own names."""
    places = [place for place in (folder, folder.with_name(f"{folder.name}.part")) if place.is_dir()]
    return {name: (place / name).read_bytes() for place in places for name in MODEL if (place / name).is_file()}


def run(hub_name: str, case: Case, folder: Path) -> Outcome:
    """Download with the faults, then without."""
    workspace = Workspace(folder / "workspace")
    workspace.folder.mkdir(parents=True)
    served = (MODEL | UNWANTED | case.files).items()
    files = {name.replace(HERE, str(folder)): text for name, text in served if text is not None}
    with HUBS[hub_name](files) as hub:
        hub.faults = [replace(fault) for fault in case.faults]
        hub.listed_sizes = case.listed_sizes
        env = environment(folder / "home", **{hub_name: hub.address}, **IMPATIENT)
        began = time.monotonic()
        done = workspace.yi_tune("download", "--source", hub_name, env=env)
        seconds = time.monotonic() - began
        local = find_model("yi-1.5-6b-chat", workspace.folder)
        try:
            check_model(local)
        except YiTuneError:
            taken = False
        else:
            taken = True
        files_after = lying(local.path)
        strays = list(folder.rglob("*outside*"))
        again, files_again = None, {}
        if case.curable:
            hub.faults, hub.listed_sizes = [], {}
            again = workspace.yi_tune("download", "--source", hub_name, env=env)
            files_again = lying(local.path)
    return Outcome(done, seconds, taken, files_after, strays, again, files_again)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], "Future[Outcome]"]]:
    """All the cases that are asked for, begun."""
    asked = [item.callspec.params for item in request.session.items if getattr(item, "module", None) is request.module]
    with ThreadPoolExecutor(8) as pool:
        yield {
            (params["hub_name"], params["name"]): pool.submit(
                run, params["hub_name"], CASES[params["name"]], tmp_path_factory.mktemp("fault")
            )
            for params in asked
        }


@pytest.mark.parametrize("hub_name", HUBS)
@pytest.mark.parametrize("name", CASES)
def test_fault(outcomes: dict[tuple[str, str], "Future[Outcome]"], hub_name: str, name: str) -> None:
    case, outcome = CASES[name], outcomes[hub_name, name].result()
    assert "Traceback" not in outcome.done.err
    assert outcome.done.status == (0 if case.ends_well else 1), outcome.done.err
    for words in case.says:
        assert words.lower() in outcome.done.err.lower()
    assert outcome.taken_for_a_model is case.ends_well
    if not case.of_the_source:
        # Whatever lies under a file's own name is that file.
        assert {name: MODEL[name] for name in outcome.files} == outcome.files
        assert not case.ends_well or outcome.files == MODEL
    if case.curable:
        assert outcome.again is not None
        assert outcome.again.status == 0, outcome.again.err
        assert outcome.files_again == MODEL
    assert not outcome.strays
    # The clients' own last word is a minute and more.
    assert outcome.seconds < 60
