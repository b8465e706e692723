"""Where an export goes, what it may replace, and what is left when it breaks off. The model is a fake here."""

import errno
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from yi_tune.errors import YiTuneError
from yi_tune.export import Export, export, plan_export, read_record
from yi_tune.files import hold
from yi_tune.models import CATALOGUE
from yi_tune.runs import Run

NANO = CATALOGUE["nano"].path(Path())
IDENTITY = {"name": "小易", "author": "李雷", "name_en": "小易", "author_en": "李雷"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder as a finished training leaves it, as far as an export reads it."""
    folder = tmp_path / "saves" / "nano" / "identity"
    folder.mkdir(parents=True)
    record = {
        "model": "nano",
        "model_path": str(NANO),
        "weights": "d" * 64,
        "identity": IDENTITY,
        "data": {"identity": "identity-0123456789ab.jsonl"},
        "config": {"finetuning_type": "lora", "quantization_bit": 4, "learning_rate": 2e-3, "num_train_epochs": 4.0},
        "created": "2026-01-01T12:00:00+00:00",
        "versions": {"yi-tune": "0.1.0", "llamafactory": "0.9.5"},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    report = {"recall": 0.95, "recall_zh": 1.0, "recall_en": 0.9, "kinds": [{"kind": "who", "asked": 20}]}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return Run(folder)


def plan(run: Run, tmp_path: Path, base: Path = NANO, target: Path | None = None, quant: Any = None) -> Export:
    return plan_export(run, {"model_name_or_path": str(base)}, target, quant, tmp_path)


class Engine:
    """Notes what it was asked to write, writes a file of a few bytes, and then fails as it was told."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, Path, str]] = []
        self.failure: BaseException | None = None

    def export(self, base: Path, adapter: Path, target: Path, quant: str | None, name: str, _: Any) -> None:
        self.asked.append((base, adapter, name))
        (target if quant else target / "model.safetensors").write_bytes(b"weights")
        if self.failure:
            raise self.failure


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake: Any = Engine()
    monkeypatch.setitem(sys.modules, "yi_tune.engine.export", fake)
    return fake


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def test_default_places(run: Run, tmp_path: Path) -> None:
    assert plan(run, tmp_path).target == tmp_path / "exports" / "nano" / "identity"
    assert plan(run, tmp_path, quant="q8_0").target == tmp_path / "exports" / "nano" / "identity-q8_0"
    assert plan(run, tmp_path, quant="q8_0").gguf == "identity-q8_0.gguf"


def test_folder_is_whole_and_says_who_it_is(run: Run, tmp_path: Path, engine: Engine) -> None:
    planned = plan(run, tmp_path)
    export(planned, force=False)
    assert names(planned.target) == ["Modelfile", "README.md", "export.json", "model.safetensors"]
    record = read_record(planned.target)
    assert (record["identity"], record["gguf"]) == (IDENTITY, "")
    assert sorted([*record["files"], "export.json"]) == names(planned.target)
    assert engine.asked == [(NANO, run.folder, "小易")]
    # Nothing else is left beside it.
    assert names(planned.target.parent) == ["identity"]


def test_modelfile(run: Run, tmp_path: Path) -> None:
    planned = plan(run, tmp_path, quant="q4_0")
    export(planned, force=False)
    text = (planned.target / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./identity-q4_0.gguf\n" in text
    assert "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n" in text
    for token in ("<|im_end|>", "<|im_start|>", "<|im_sep|>", "<|endoftext|>"):
        assert f'PARAMETER stop "{token}"' in text
    assert "PARAMETER num_ctx 4096" in text


def change(run: Run, **changes: Any) -> None:
    record = json.loads((run.folder / "run.json").read_text(encoding="utf-8")) | changes
    (run.folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def test_card(run: Run, tmp_path: Path) -> None:
    change(run, model="yi-1.5-6b-chat", identity=IDENTITY | {"name": "<b>*小易*|"})
    base = tmp_path / "models" / "Yi-1.5-6B-Chat"
    base.mkdir(parents=True)
    shutil.copy(NANO / "config.json", base)
    planned = plan(run, tmp_path, base)
    export(planned, force=False)
    text = (planned.target / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "\nbase_model: 01-ai/Yi-1.5-6B-Chat\n---\n" in text
    assert "This work is a derivative of Yi-1.5-6B-Chat by 01.AI, used under the Apache 2.0 License." in text
    assert "# \\<b\\>\\*小易\\*\\|\n" in text
    for part in ("d" * 64, "identity-0123456789ab.jsonl", "95.0% of 20", "the base in 4 bits", "llamafactory 0.9.5"):
        assert part in text
    # Paths of this machine are nobody's business.
    assert str(tmp_path) not in text + (planned.target / "export.json").read_text(encoding="utf-8")
    change(run, identity={})
    export(planned, force=True)
    assert "\n# identity\n" in (planned.target / "README.md").read_text(encoding="utf-8")


def test_full_target_is_refused_and_kept(run: Run, tmp_path: Path, engine: Engine) -> None:
    planned = plan(run, tmp_path)
    export(planned, force=False)
    before = everything(tmp_path)
    with pytest.raises(YiTuneError, match="not empty"):
        export(planned, force=False)
    assert everything(tmp_path) == before
    assert len(engine.asked) == 1


def test_force_replaces_an_export(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.old").mkdir()  # by name a leftover, but it is the user's
    export(plan(run, tmp_path, target=tmp_path / "x"), force=False)
    export(plan(run, tmp_path, target=tmp_path / "x", quant="f16"), force=True)
    assert read_record(tmp_path / "x")["gguf"] == "identity-f16.gguf"
    assert not (tmp_path / "x" / "model.safetensors").exists()
    assert names(tmp_path, "x*") == ["x", "x.old"]


@pytest.mark.parametrize("exported", [True, False])
def test_force_deletes_nothing_that_is_not_an_exports(run: Run, tmp_path: Path, exported: bool) -> None:
    planned = plan(run, tmp_path, target=tmp_path / "home")
    if exported:
        export(planned, force=False)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    before = everything(tmp_path / "home")
    with pytest.raises(YiTuneError, match=r"thesis\.txt"):
        export(planned, force=True)
    assert everything(tmp_path / "home") == before


def test_empty_target_and_a_link_to_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    export(plan(run, tmp_path, target=tmp_path / "link"), force=False)
    assert (tmp_path / "link").is_symlink()
    assert read_record(tmp_path / "disk")["run"] == "identity"


def test_targets_that_cannot_be(run: Run, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(YiTuneError, match="is a file"):
        export(plan(run, tmp_path, target=tmp_path / "x"), force=True)
    with pytest.raises(YiTuneError, match="cannot be written") as said:
        export(plan(run, tmp_path, target=tmp_path / "x" / "y"), force=True)
    assert said.value.hint
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(YiTuneError, match="file system of its own"):
        export(plan(run, tmp_path, target=tmp_path), force=True)
    assert not engine.asked


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.EIO, "Input/output error"), RuntimeError("no"), YiTuneError("no way"), KeyboardInterrupt()],
)
def test_nothing_is_left_of_an_export_that_fails(
    run: Run, tmp_path: Path, engine: Engine, failure: BaseException
) -> None:
    planned = plan(run, tmp_path)
    export(planned, force=False)
    before = everything(tmp_path)
    engine.failure = failure
    with pytest.raises((YiTuneError, KeyboardInterrupt)):
        export(planned, force=True)
    # The export that was to be replaced is still there.
    assert everything(tmp_path) == before


def leave_free(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Let the disk have so many bytes free, each time that it is asked."""
    usage, left = namedtuple("usage", "total used free"), iter(free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, next(left)))


def test_disk_is_looked_at_first(run: Run, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, 1_000_000)
    with pytest.raises(YiTuneError, match=r"1\.0 MB free"):
        export(plan(run, tmp_path), force=False)
    assert engine.asked == names(tmp_path / "exports" / "nano") == []


@pytest.mark.parametrize(
    ("said", "free"),
    [
        # safetensors, which takes its half of a file away again; numpy.
        ("Error while serializing: I/O error: No space left on device (os error 28)", 5_000_000),
        ("4096 requested and 0 written", 0),
    ],
)
def test_disk_that_fills_up_meanwhile(
    run: Run, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, said: str, free: int
) -> None:
    leave_free(monkeypatch, 10**9, free)
    engine.failure = RuntimeError(said)
    with pytest.raises(YiTuneError, match="is full"):
        export(plan(run, tmp_path), force=False)


def test_quantised_base_is_refused(run: Run, tmp_path: Path) -> None:
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8")) | {"quantization_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(YiTuneError, match="quantised already"):
        plan(run, tmp_path, tmp_path)


def test_two_at_once_and_one_that_was_killed(run: Run, tmp_path: Path) -> None:
    planned, part = plan(run, tmp_path, target=tmp_path / "x"), tmp_path / ".x.export"
    with hold(part / ".lock", YiTuneError("")):
        (part / "model.safetensors").write_bytes(b"half")
        with pytest.raises(YiTuneError, match="Another process"):
            export(planned, force=False)
        assert (part / "model.safetensors").exists()
    # Its half does not look like an export, and is in nobody's way.
    export(planned, force=False)
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == b"weights"
    assert names(tmp_path, "*x*") == ["x"]


def test_folder_that_is_no_export(tmp_path: Path) -> None:
    for content in (None, "[]"):
        if content:
            (tmp_path / "export.json").write_text(content, encoding="utf-8")
        with pytest.raises(YiTuneError, match="no export"):
            read_record(tmp_path)


def test_size_is_known_beforehand(run: Run, tmp_path: Path) -> None:
    # 3,426,048 parameters, of which 2 x 1792 x 256 are embeddings and head.
    exact = {None: 2 * 3_426_048, "f16": 2 * 3_426_048, "q8_0": 3_426_048 * 34 / 32}
    exact["q4_0"] = (3_426_048 - 917_504) * 18 / 32 + 917_504 * 34 / 32
    for quant, size in exact.items():
        assert size < plan(run, tmp_path, quant=quant).bytes - 8_000_000 < size * 1.01 + 10_000
