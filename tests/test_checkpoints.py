import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from yi_tune.checkpoints import newest_whole

# In the order in which the Trainer writes them.
FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)
NEEDED = [name for name in FILES if name not in ("adapter_config.json", "training_args.bin")]


def checkpoint(run: Path, step: int) -> Path:
    """A checkpoint that is whole."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"lora_A": np.ones((64, 8), np.float32)}, folder / FILES[0])
    for name in ("adapter_config.json", "trainer_state.json"):
        (folder / name).write_text('{"global_step": 5, "best": null}')
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(1000)}, folder / name)
    return folder


def newest(run: Path) -> tuple[Path | None, str]:
    """The newest whole checkpoint, and what is said of those that are not."""
    said: list[str] = []
    return newest_whole(run, said.append), "".join(f"{line}\n" for line in said)


def test_newest_whole_one_by_number(tmp_path: Path) -> None:
    foreign = {"checkpoint-", "checkpoint-best", "checkpoint-9-old", "checkpoint"}
    for name in foreign:
        (tmp_path / name).mkdir()
    assert newest(tmp_path) == (None, "")
    older, newer, _ = (checkpoint(tmp_path, step) for step in (5, 100, 20))
    assert newest(tmp_path) == (newer, "")
    # Older ones are looked at too: the best one may be older than the newest.
    (older / "optimizer.pt").write_bytes(b"half")
    found, said = newest(tmp_path)
    assert (found, older.exists()) == (newer, False)
    assert "checkpoint-5 is broken" in said
    assert {folder.name for folder in tmp_path.iterdir()} == foreign | {"checkpoint-20", "checkpoint-100"}
    for step in (20, 100):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"half")
    assert newest(tmp_path)[0] is None
    assert {folder.name for folder in tmp_path.iterdir()} == foreign


def test_killed_at_any_moment_of_a_save(tmp_path: Path) -> None:
    # Files are written one after the other: at any moment some are whole, one is cut short and the others not there.
    model = checkpoint(tmp_path / "model", 10)
    for written, name in enumerate(FILES):
        size = (model / name).stat().st_size
        # The last is what a power cut leaves.
        for part in (None, 0, 1, size // 2, size - 1, size):
            run = tmp_path / f"run-{name}-{part}"
            kept, half = checkpoint(run, 5), run / "checkpoint-10"
            half.mkdir()
            for earlier in FILES[:written]:
                shutil.copy(model / earlier, half)
            if part is not None:
                (half / name).write_bytes(bytes(size) if part == size else (model / name).read_bytes()[:part])
            found, said = newest(run)
            assert found == kept
            assert said.startswith("checkpoint-10 is broken (")
            if name in NEEDED:
                assert f"({name.replace('adapter_model', '')} is missing or cut short), and removed.\n" in said
            assert [path.name for path in run.iterdir()] == ["checkpoint-5"]


def test_a_random_state_of_each_process(tmp_path: Path) -> None:
    for step, ranks in ((5, 2), (10, 1), (15, 3)):
        folder = checkpoint(tmp_path, step)
        (folder / "trainer_state.json").write_text(f'{{"global_step": 5, "stateful_callbacks": {{"ranks": {ranks}}}}}')
        if ranks > 1:
            rng = (folder / "rng_state.pth").read_bytes()
            (folder / "rng_state.pth").unlink()
            for rank in range(2):
                (folder / f"rng_state_{rank}.pth").write_bytes(rng)
    found, said = newest(tmp_path)
    assert said == "checkpoint-15 is broken (rng_state.pth is missing or cut short), and removed.\n"
    assert found == tmp_path / "checkpoint-10"
    assert (tmp_path / "checkpoint-5").is_dir()
    (tmp_path / "checkpoint-5" / "rng_state_1.pth").write_bytes(b"half")
    assert "checkpoint-5 is broken (rng_state.pth" in newest(tmp_path)[1]


ZERO2 = [
    *(f"global_step10/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)),
    "global_step10/mp_rank_00_model_states.pt",
    "latest",
]
ZERO3 = [name.replace("mp_rank_00_model", "zero_pp_rank_0_mp_rank_00_model") for name in ZERO2]


@pytest.mark.parametrize(
    "files",
    [
        ZERO2,
        ZERO3,
        ["pytorch_model_fsdp.bin", "optimizer.bin"],
        ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"],
    ],
    ids=lambda files: files[0].partition("/")[0],
)
def test_what_sharding_writes(files: list[str], tmp_path: Path) -> None:
    def sharded(step: int) -> Path:
        folder = checkpoint(tmp_path, step)
        state = (folder / "optimizer.pt").read_bytes()
        (folder / "optimizer.pt").unlink()
        (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
        (folder / "rng_state_1.pth").write_bytes(state)
        (folder / "trainer_state.json").write_text('{"stateful_callbacks": {"ranks": 2}}')
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(state)
        return folder

    whole = sharded(5)
    for name in files:
        half = sharded(10)
        (half / name).unlink()
        found, said = newest(tmp_path)
        assert (found, half.exists()) == (whole, False), name
        assert said.startswith("checkpoint-10 is broken (")
        if name.endswith((".pt", ".bin")):
            half = sharded(10)
            (half / name).write_bytes((half / name).read_bytes()[:-1])
            assert newest(tmp_path)[0] == whole, name
    assert newest(tmp_path) == (whole, "")


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt"])
def test_checkpoint_that_cannot_be_read_is_not_broken(tmp_path: Path, name: str) -> None:
    unreadable = checkpoint(tmp_path, 10)
    (unreadable / name).unlink()
    (unreadable / name).mkdir()  # a read that fails, even for root
    with pytest.raises(OSError, match=name):
        newest(tmp_path)
    assert (unreadable / "adapter_model.safetensors").is_file()
