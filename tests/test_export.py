"""Where an export goes, what it may replace, and what is left when it breaks off. The model is a fake here."""

import errno
import json
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.plans import record
from yi_tune.errors import YiTuneError
from yi_tune.export import Export, export, plan_export, read_record
from yi_tune.files import hold
from yi_tune.models import CATALOGUE, LocalModel
from yi_tune.runs import Run

NANO = CATALOGUE["nano"].path(Path())
IDENTITY = {"name": "小易", "author": "李雷", "name_en": "小易", "author_en": "李雷"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder as a finished training leaves it, as far as an export reads it."""
    folder = tmp_path / "saves" / "nano" / "identity"
    folder.mkdir(parents=True)
    config = {"finetuning_type": "lora", "quantization_bit": 4, "learning_rate": 2e-3, "num_train_epochs": 4.0}
    made = record(config, LocalModel(CATALOGUE["nano"], NANO), IDENTITY, {"identity": "identity-0123456789ab.jsonl"})
    (folder / "run.json").write_text(json.dumps(made), encoding="utf-8")
    report = {"recall": 0.95, "recall_zh": 1.0, "recall_en": 0.9, "kinds": [{"kind": "who", "asked": 20}]}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    return Run(folder)


def plan(run: Run, tmp_path: Path, target: str | None = None, quant: Any = None, base: Path = NANO) -> Export:
    """An export to that folder in `tmp_path`."""
    return plan_export(run, {"model_name_or_path": str(base)}, target and tmp_path / target, quant, tmp_path)


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


def test_folder_is_whole_and_says_who_it_is(run: Run, tmp_path: Path, engine: Engine) -> None:
    planned = plan(run, tmp_path)
    export(planned, force=False)
    assert planned.target == tmp_path / "exports" / "nano" / "identity"
    assert names(planned.target) == ["Modelfile", "README.md", "export.json", "model.safetensors"]
    written = read_record(planned.target)
    assert (written["identity"], written["gguf"]) == (IDENTITY, "")
    assert sorted([*written["files"], "export.json"]) == names(planned.target)
    assert engine.asked == [(NANO, run.folder, "小易")]
    # Nothing else is left beside it.
    assert names(planned.target.parent) == ["identity"]


QUANTISER = """#!/bin/sh
[ "$(head -c 7 "$1")" = weights ] && [ "$3" = Q4_K_M ] && {}
"""


def quantiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """Have on the PATH what goes by the name of llama.cpp's program; it is given an f16 file and does as told."""
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(QUANTISER.format(does))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def test_k_quant_with_a_modelfile(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantiser(tmp_path, monkeypatch, 'echo small > "$2"')
    planned = plan(run, tmp_path, quant="q4_k_m")
    # Beside what it leaves there is room for 16 bits on the way.
    assert planned.bytes > plan(run, tmp_path, quant="f16").bytes + 2_000_000
    export(planned, force=False)
    assert planned.target == tmp_path / "exports" / "nano" / "identity-q4_k_m"
    assert names(planned.target) == ["Modelfile", "README.md", "export.json", "identity-q4_k_m.gguf"]
    assert (planned.target / planned.gguf).read_text() == "small\n"
    text = (planned.target / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./identity-q4_k_m.gguf\n" in text
    assert "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n" in text
    for token in ("<|im_end|>", "<|im_start|>", "<|im_sep|>", "<|endoftext|>"):
        assert f'PARAMETER stop "{token}"' in text
    assert "PARAMETER num_ctx 4096" in text


@pytest.mark.parametrize(("does", "status"), [("exit 3", 3), ("kill $$", -15), ("true", 0)])
def test_k_quant_that_fails(does: str, status: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantiser(tmp_path, monkeypatch, does)
    with pytest.raises(YiTuneError, match=rf"llama-quantize ended with status {status}\b"):
        export(plan(run, tmp_path, quant="q4_k_m"), force=False)
    assert names(tmp_path / "exports" / "nano") == []


def test_without_the_program_or_weights_to_merge_into(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(YiTuneError, match="no llama-quantize on the PATH") as caught:
        plan(run, tmp_path, quant="q4_k_m")
    assert "--quant q8_0" in caught.value.hint
    (tmp_path / "config.json").write_text('{"quantization_config": {}}', encoding="utf-8")
    with pytest.raises(YiTuneError, match="quantised already"):
        plan(run, tmp_path, base=tmp_path)


def change(run: Run, **changes: Any) -> None:
    (run.folder / "run.json").write_text(json.dumps(run.record | changes), encoding="utf-8")


def test_card(run: Run, tmp_path: Path) -> None:
    change(run, model="yi-1.5-6b-chat", identity=IDENTITY | {"name": "<b>*小易*|"})
    base = tmp_path / "models" / "Yi-1.5-6B-Chat"
    base.mkdir(parents=True)
    shutil.copy(NANO / "config.json", base)
    planned = plan(run, tmp_path, base=base)
    export(planned, force=False)
    text = (planned.target / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "\nbase_model: 01-ai/Yi-1.5-6B-Chat\n---\n" in text
    assert "This work is a derivative of Yi-1.5-6B-Chat by 01.AI, used under the Apache 2.0 License." in text
    assert "# \\<b\\>\\*小易\\*\\|\n" in text
    for part in (
        run.record["weights"],
        "identity-0123456789ab.jsonl",
        "95.0% of 20",
        "the base in 4 bits",
        "llamafactory 0.9.5",
    ):
        assert part in text
    # Paths of this machine are nobody's business.
    assert str(tmp_path) not in text + (planned.target / "export.json").read_text(encoding="utf-8")
    # Pushed to the other hub it is the same export, with that hub's name for the base.
    export(replace(planned, hub="modelscope"), force=False, again=True)
    text = (planned.target / "README.md").read_text(encoding="utf-8")
    assert "\nbase_model: 01ai/Yi-1.5-6B-Chat\n---\n" in text
    for changed in (planned.target / "thesis.txt", run.folder / "adapter_model.safetensors"):
        changed.write_bytes(b"other")
        with pytest.raises(YiTuneError, match="not empty"):
            export(planned, force=False, again=True)
        (planned.target / "thesis.txt").unlink(missing_ok=True)
    change(run, identity={})
    export(planned, force=True)
    assert "\n# identity\n" in (planned.target / "README.md").read_text(encoding="utf-8")


def test_force_replaces_an_export_and_nothing_else(run: Run, tmp_path: Path, engine: Engine) -> None:
    export(plan(run, tmp_path, "x"), force=False)
    (tmp_path / "x.old").mkdir()  # by name a leftover, but it is the user's
    before = everything(tmp_path)
    with pytest.raises(YiTuneError, match="not empty"):
        export(plan(run, tmp_path, "x"), force=False)
    assert everything(tmp_path) == before
    assert len(engine.asked) == 1
    export(plan(run, tmp_path, "x", "f16"), force=True)
    assert read_record(tmp_path / "x")["gguf"] == "identity-f16.gguf"
    assert not (tmp_path / "x" / "model.safetensors").exists()
    assert names(tmp_path, "*x*") == ["x", "x.old"]
    for folder in ("x", "x.old"):
        (tmp_path / folder / "thesis.txt").write_text("years of work")
        before = everything(tmp_path)
        with pytest.raises(YiTuneError, match=r"thesis\.txt"):
            export(plan(run, tmp_path, folder), force=True)
        assert everything(tmp_path) == before


def test_empty_target_and_a_link_to_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    export(plan(run, tmp_path, "link"), force=False)
    assert (tmp_path / "link").is_symlink()
    assert read_record(tmp_path / "disk")["run"] == "identity"


@pytest.mark.parametrize(
    ("target", "said"), [("x", "is a file"), ("x/y", "cannot be written"), ("mount", "file system of its own")]
)
def test_targets_that_cannot_be(
    target: str, said: str, run: Run, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").touch()
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mount")
    with pytest.raises(YiTuneError, match=said) as caught:
        export(plan(run, tmp_path, target), force=True)
    assert "--to DIR" in caught.value.hint
    assert not engine.asked


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.EIO, "Input/output error"), RuntimeError("no"), YiTuneError("no way"), KeyboardInterrupt()],
)
def test_nothing_is_left_of_an_export_that_fails(
    run: Run, tmp_path: Path, engine: Engine, failure: BaseException
) -> None:
    export(plan(run, tmp_path), force=False)
    before = everything(tmp_path)
    engine.failure = failure
    with pytest.raises((YiTuneError, KeyboardInterrupt)):
        export(plan(run, tmp_path), force=True)
    # The export that was to be replaced is still there.
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("failure", "free", "said"),
    [
        ("", [12_000_000] * 2, r"12\.0 MB free"),
        # safetensors, which takes its half of a file away again; numpy.
        ("Error while serializing: I/O error: No space left on device (os error 28)", [10**9, 10**9], "is full"),
        ("4096 requested and 0 written", [10**9, 0], "is full"),
    ],
)
def test_disk_too_small(
    failure: str, free: list[int], said: str, run: Run, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, left = namedtuple("usage", "total used free"), iter(free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, next(left)))
    engine.failure = RuntimeError(failure)
    with pytest.raises(YiTuneError, match=said):
        export(plan(run, tmp_path), force=False)
    assert len(engine.asked) == bool(failure)
    assert names(tmp_path / "exports" / "nano") == []


def test_two_at_once_and_one_that_was_killed(run: Run, tmp_path: Path) -> None:
    half = tmp_path / ".x.export" / "model.safetensors"
    with hold(tmp_path / ".x.lock", YiTuneError("")):
        half.parent.mkdir()
        half.write_bytes(b"half")
        with pytest.raises(YiTuneError, match="Another process"):
            export(plan(run, tmp_path, "x"), force=False)
        assert half.exists()
    # Its half does not look like an export, and is in nobody's way.
    export(plan(run, tmp_path, "x"), force=False)
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == b"weights"
    assert names(tmp_path, "*x*") == ["x"]


@pytest.mark.parametrize("content", [None, "[]"])
def test_folder_that_is_no_export(content: str | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / "export.json").write_text(content, encoding="utf-8")
    with pytest.raises(YiTuneError, match="no export"):
        read_record(tmp_path)
