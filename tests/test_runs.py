import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plans import record
from yi_tune import runs
from yi_tune.config import read_config
from yi_tune.errors import YiTuneError
from yi_tune.models import LocalModel, Model
from yi_tune.runs import Run, differences, find_one, find_run, outdated, remove, train_run, write_configs

NANO = LocalModel(Model("nano", "nano"), Path("/models/nano"))
IDENTITY = {"name": "小易", "author": "李雷", "name_en": "小易", "author_en": "李雷"}
CONFIG = {"model_name_or_path": "/models/nano", "learning_rate": 1e-3, "output_dir": "/ws/saves/nano/identity"}


def content(data: str = "identity-0.jsonl", **config: Any) -> dict[str, Any]:
    """A run.json."""
    return record(CONFIG | config, NANO, IDENTITY, {"identity": data})


def prepare(run: Run, new: dict[str, Any], *, fresh: bool) -> None:
    runs.prepare(run, new, outdated(run, new, fresh=fresh))


def files(folder: Path) -> dict[str, bytes | None]:
    """All there is in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An empty run folder."""
    folder = tmp_path / "saves" / "nano" / "identity"
    folder.mkdir(parents=True)
    return Run(folder)


@pytest.fixture
def unfinished(run: Run) -> Run:
    """A run that was stopped."""
    prepare(run, content(), fresh=False)
    (run.folder / "checkpoint-5").mkdir()
    run.data.mkdir()
    (run.data / "identity-0.jsonl").write_text("{}")
    run.log.write_text("log")
    return run


@pytest.fixture
def finished(unfinished: Run) -> Run:
    """A run that came to its end."""
    unfinished.write("report.json", "{}")
    return unfinished


# Making ready


def test_new_run_is_recorded(run: Run) -> None:
    new = content()
    prepare(run, new, fresh=False)
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8")) == new
    assert run.record == new | {"command": ""}
    assert new["versions"].keys() >= {"yi-tune", "llamafactory", "torch", "transformers", "peft", "bitsandbytes"}
    assert new["versions"]["llamafactory"].startswith("0.9.5")
    assert not run.finished


def test_run_is_left_as_it_is_by_its_own_command_and_by_others(unfinished: Run) -> None:
    before = files(unfinished.folder)
    prepare(unfinished, content(output_dir="/moved", model_name_or_path="/too", dataset_dir="/there"), fresh=False)
    other = content("identity-1.jsonl", learning_rate=2e-3, lora_rank=16) | {"identity": IDENTITY | {"author": "X"}}
    with pytest.raises(YiTuneError, match="exists with other settings") as caught:
        prepare(unfinished, other, fresh=False)
    assert files(unfinished.folder) == before
    for change in (
        "learning_rate: 0.001 -> 0.002",
        "lora_rank: None -> 16",
        "author: 李雷 -> X",
        "data identity: identity-0.jsonl -> identity-1.jsonl",
    ):
        assert change in caught.value.message
    assert "output_dir" not in caught.value.message
    assert ("--run" in caught.value.hint, "--fresh" in caught.value.hint) == (True, True)
    unfinished.write("report.json", "{}")
    with pytest.raises(YiTuneError, match="is finished already") as caught:
        prepare(unfinished, content(), fresh=False)
    assert ("chat --run identity" in caught.value.hint, "--fresh" in caught.value.hint) == (True, True)
    assert files(unfinished.folder) == before | {"report.json": b"{}"}


def test_run_that_has_trained_nothing_is_replaced(run: Run) -> None:
    prepare(run, content(optim="banana"), fresh=False)
    (run.folder / "train.yaml").write_text("optim: banana")
    run.record_failure(YiTuneError("There is no banana."))
    prepare(run, content(optim="adamw_torch"), fresh=False)
    assert run.record["config"]["optim"] == "adamw_torch"
    assert {path.name for path in run.folder.iterdir()} == {"run.json"}
    # With weights, and its checkpoints gone, it has trained.
    (run.folder / "adapter_model.safetensors").touch()
    with pytest.raises(YiTuneError, match="exists with other settings"):
        prepare(run, content(lora_rank=16), fresh=False)


def test_fresh_leaves_nothing_old(finished: Run, tmp_path: Path) -> None:
    run, elsewhere = finished, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("keep")
    (run.folder / "link").symlink_to(elsewhere)
    (run.folder / ".lock").touch()
    prepare(run, content(learning_rate=2e-3), fresh=True)
    assert {path.name for path in run.folder.iterdir()} == {".lock", "run.json"}
    assert run.record["config"]["learning_rate"] == 2e-3
    assert (elsewhere / "mine").read_text() == "keep"


def test_foreign_folder_is_not_touched(run: Run) -> None:
    (run.folder / "thesis.txt").write_text("mine")
    (run.folder / ".lock").touch()
    before = files(run.folder)
    for fresh in (False, True):
        with pytest.raises(YiTuneError, match="no run of yi-tune's") as caught:
            prepare(run, content(), fresh=fresh)
        assert "--run" in caught.value.hint
    assert files(run.folder) == before


def test_fresh_that_fails_halfway_can_be_repeated(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree = shutil.rmtree

    def full(folder: Path) -> None:
        if folder.name == "runs":
            raise OSError(f"{folder} stays")
        rmtree(folder)

    for name in (".hidden", "a", "train.yaml", "zzz"):
        (finished.folder / name).touch()
    for again in (lambda: prepare(finished, content(), fresh=True), lambda: remove(finished)):
        (finished.folder / "runs").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", full)
            with pytest.raises(OSError, match="stays"):
                again()
        # The record goes last: until then it is known to be a run.
        assert find_one(finished.folder.parents[2], "identity", None) == finished
        again()
        assert [path.name for path in finished.folder.glob("*")] in (["run.json"], [])
    assert not finished.folder.exists()


@pytest.mark.parametrize("text", ["{", "\xff", "[]", '{"model": "nano"}'])
def test_broken_record(run: Run, text: str) -> None:
    (run.folder / "run.json").write_bytes(text.encode("latin-1", errors="xmlcharrefreplace"))
    with pytest.raises(YiTuneError, match=r"no readable run\.json") as caught:
        prepare(run, content(), fresh=False)
    assert "--fresh" in caught.value.hint
    prepare(run, content(), fresh=True)
    assert run.record["model"] == "nano"


def test_differences_of_json_and_python() -> None:
    config = {"warmup_ratio": 0.1, "save_steps": 500, "list": ["a", 1], "none": None, "text": "1e-3"}
    read_back = json.loads(json.dumps(content(**config)))
    assert differences(read_back, content(**config)) == []
    assert differences(read_back, content(**config | {"text": 1e-3})) == ["text: 1e-3 -> 0.001"]
    assert differences(content() | {"model": "yi"}, content()) == ["model: yi -> nano"]
    new = {**content(), "weights": "b"}
    assert differences(content() | {"weights": "a"}, new) == ["weights: a -> b"]
    assert differences(content() | {"weights": ""}, new) == []
    more = content() | {"data": {"identity": "identity-0.jsonl", "own": "own-1.jsonl"}}
    assert differences(content(), more) == ["data own: None -> own-1.jsonl"]
    assert differences(content(lora_rank=8), content()) == ["lora_rank: 8 -> None"]
    # A key that is off is as good as none.
    assert differences(content(neat_packing=False), content(max_samples=None)) == []
    off = content(double_quantization=False)  # which is on by itself
    assert differences(off, content()) == ["double_quantization: False -> None"]
    assert differences(content(warmup_ratio=0), content()) == ["warmup_ratio: 0 -> None"]


def test_other_hardware_and_another_division_of_a_step_make_no_other_run() -> None:
    assert differences(content(fp16=True), content(bf16=True, use_cpu=True)) == []
    micro, accumulation = "per_device_train_batch_size", "gradient_accumulation_steps"
    others = {"per_device_eval_batch_size": 2, "disable_gradient_checkpointing": False, "flash_attn": "fa2"}
    old = content(**{micro: 8, accumulation: 1})
    assert differences(old, content(**{micro: 2, accumulation: 4, **others})) == []
    assert differences(old, content(**{micro: 4, accumulation: 1})) == ["effective batch: 8 -> 4"]


# Files


def test_failure_is_kept_until_the_run_goes_on(unfinished: Run) -> None:
    assert unfinished.failure == ""
    unfinished.record_failure(YiTuneError("The GPU is out of memory. 显存"))
    assert unfinished.failure == "The GPU is out of memory. 显存"
    unfinished.page.touch()
    prepare(unfinished, content(), fresh=False)
    assert unfinished.failure == ""
    assert not unfinished.page.exists()  # it tells of the failure
    # Where it cannot be written, that is no failure of its own.
    (unfinished.folder / "failure.json").mkdir()
    unfinished.record_failure(YiTuneError("The disk is full."))
    assert unfinished.failure == ""


def test_write_is_all_or_nothing(run: Run) -> None:
    run.write("report.json", "old 你好")
    with pytest.raises(UnicodeEncodeError):  # as good a failure halfway as any
        run.write("report.json", "new" * 100_000 + "\udcff")
    assert (run.folder / "report.json").read_text(encoding="utf-8") == "old 你好"
    assert [path.name for path in run.folder.iterdir()] == ["report.json"]


def test_what_a_killed_process_left_half_written_goes_when_the_run_goes_on(unfinished: Run) -> None:
    code = (
        "import os, pathlib, sys; from yi_tune import files; pathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)"
    )
    for file in ("run.json", "replay.jsonl", "failure.json"):
        path = str(unfinished.folder / file)
        subprocess.run([sys.executable, "-c", f"{code}; files.write_whole(pathlib.Path(sys.argv[1]), 'x')", path])
    assert len(list(unfinished.folder.glob("*.part"))) == 3
    with pytest.raises(YiTuneError):
        prepare(unfinished, content(lora_rank=16), fresh=False)
    assert len(list(unfinished.folder.glob("*.part"))) == 3
    prepare(unfinished, content(), fresh=False)
    assert {path.name for path in unfinished.folder.iterdir()} == {"run.json", "checkpoint-5", "data", "train.log"}


def test_configs_name_the_command_that_takes_them(run: Run) -> None:
    run.write("run.json", json.dumps(content()))
    new = {"config": {"a": 1e-5, "b": "${x}"}, "reasons": {"a": ["flag", "--set"]}, "gpus": 1}
    write_configs(run, new, {"template": "yi"}, {})
    # What a resume, or a lack of memory, has changed is told there too.
    assert new.items() <= run.record.items()
    assert read_config(run.folder / "train.yaml") == {"a": 1e-5, "b": "${x}"}
    assert read_config(run.chat_yaml) == {"template": "yi"}
    assert (run.folder / "train.yaml").read_text().startswith("# llamafactory-cli train ")
    assert run.chat_yaml.read_text().startswith("# llamafactory-cli chat ")
    write_configs(run, new | {"gpus": 2}, {}, {"DS_ACCELERATOR": "cpu"})
    several = "# FORCE_TORCHRUN=1 NPROC_PER_NODE=2 DS_ACCELERATOR=cpu llamafactory-cli train "
    assert (run.folder / "train.yaml").read_text().startswith(several)


# The lock

HOLD = """
import sys, time
from pathlib import Path
from yi_tune.runs import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(run: Run) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, run.folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_locked_by_another_process_until_it_is_killed(run: Run, holder: "subprocess.Popen[str]") -> None:
    run.write("run.json", "{}")
    assert run.running
    with pytest.raises(YiTuneError, match="Another process is working on the run 'identity'") as caught, run.lock():
        pass
    assert "--run" in caught.value.hint
    with pytest.raises(YiTuneError, match="Another process is working"):
        remove(run)
    assert (run.folder / "run.json").is_file()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not run.running
    with run.lock():
        assert run.running


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "saves").write_text("a file in place of a folder")
    run = Run(tmp_path / "saves" / "nano" / "identity")
    with pytest.raises(YiTuneError, match="cannot be written: ") as caught, run.lock():
        pass
    assert "--workspace" in caught.value.hint


# Names and places


def test_names_and_places_of_runs(tmp_path: Path) -> None:
    for name in ("a", "a.b-c_2", "2026", "小易", "_x"):
        assert train_run(tmp_path, NANO, name) == Run(tmp_path / "saves" / "nano" / name)
    for name in (".", "..", ".hidden", "-x", "../nano/a", "/x", "a b", "a,b", "a\n", "a*", "a\\b", "[a]"):
        with pytest.raises(YiTuneError, match="A run cannot be called") as caught:
            train_run(tmp_path, NANO, name)
        assert repr(name) in caught.value.message
        assert "letters" in caught.value.hint
    for workspace, path in ((tmp_path / "a,b", "/models/m"), (tmp_path, "/models,mine/m")):
        with pytest.raises(YiTuneError, match="has a comma"):
            train_run(workspace, LocalModel(Model("m", "m"), Path(path)), "identity")


# Finding


def finish(workspace: Path, name: str, when: int | None, model: str = "nano") -> Path:
    """A run on disk, finished at that time or not at all."""
    folder = workspace / "saves" / model / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    if when is not None:
        (folder / "report.json").write_text("{}")
        os.utime(folder / "report.json", (when, when))
    return folder


def test_newest_finished_run_is_found(tmp_path: Path) -> None:
    first = finish(tmp_path, "a", 100)
    second = finish(tmp_path, "a", 400, "Yi-1.5-6B-Chat")
    third = finish(tmp_path, "b", 300)
    finish(tmp_path, "zeta", None)
    for asked, found in (((), second), (("a",), second), (("a", NANO), first), ((None, NANO), third), (("b",), third)):
        assert find_run(tmp_path, *asked).folder == found


def test_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="There is no finished run in") as caught:
        find_run(tmp_path)
    assert "yi-tune train" in caught.value.hint
    finish(tmp_path, "a", None)
    finish(tmp_path, "b", 100)
    with pytest.raises(YiTuneError, match="The run 'a' is not finished") as caught:
        find_run(tmp_path, "a")
    assert "goes on" in caught.value.hint
    with pytest.raises(YiTuneError, match="There is no run called 'c' in"):
        find_run(tmp_path, "c")
    with pytest.raises(YiTuneError, match="There is no finished run"):
        find_run(tmp_path, None, LocalModel(Model("yi", "Yi"), tmp_path))


def test_one_run_of_a_name(tmp_path: Path) -> None:
    unfinished = finish(tmp_path, "a", None)
    assert find_one(tmp_path, "a", None).folder == unfinished
    other = finish(tmp_path, "a", 100, "Yi-1.5-6B-Chat")
    with pytest.raises(YiTuneError, match="2 runs are called 'a'") as caught:
        find_one(tmp_path, "a", None)
    assert "--model" in caught.value.hint
    assert find_one(tmp_path, "a", NANO).folder == unfinished
    assert find_one(tmp_path, "a", LocalModel(Model("yi", "Yi-1.5-6B-Chat"), tmp_path)).folder == other
    for name, model, folder in (("b", None, "saves"), ("b", NANO, "saves/nano")):
        with pytest.raises(YiTuneError, match=f"There is no run called 'b' in {tmp_path}/{folder}[.]") as caught:
            find_one(tmp_path, name, model)
        assert "yi-tune runs" in caught.value.hint
