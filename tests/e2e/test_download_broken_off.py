"""A download that was killed, interrupted or ran out of disk goes on where it stopped."""

import random
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.conftest import Done, Workspace
from tests.hubs import HUBS, Hub
from tests.hubs.machine import environment
from tests.hubs.models import UNWANTED, YI_TOKENIZER, nano_tokenizer, sharded, yi_tokenizer
from yi_tune.errors import YiTuneError
from yi_tune.models import check_model, find_model

BOTH = pytest.mark.parametrize("name", HUBS)
FOLDER = Path("models") / "Yi-1.5-6B-Chat"
KILLS = 10
LARGE = 10_000_000


def start(workspace: Workspace, name: str, hub: Hub) -> "subprocess.Popen[str]":
    env = environment(workspace.folder.parent, **{name: hub.address})
    return workspace.start("download", "yi-1.5-6b-chat", "--source", name, env=env)


def send_signal(process: "subprocess.Popen[str]", number: signal.Signals, hub: Hub, sent: float) -> Done:
    """Send a signal once the hub has sent so many bytes more."""
    target = hub.sent + sent
    while hub.sent < target and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def finish(workspace: Workspace, name: str, hub: Hub) -> Done:
    process = start(workspace, name, hub)
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


def is_taken_for_a_model(workspace: Workspace) -> bool:
    try:
        check_model(find_model("yi-1.5-6b-chat", workspace.folder))
    except YiTuneError:
        return False
    return True


def content(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in files if (folder / file).is_file()}


def fetched_so_far(workspace: Workspace, files: dict[str, bytes]) -> dict[str, bytes]:
    """What has been finished of a model that is not: it waits beside the model's place."""
    return content(workspace.folder / f"{FOLDER}.part", files)


@BOTH
def test_killed_ten_times_over(name: str, workspace: Workspace) -> None:
    files = sharded(nano_tokenizer(), vocab=1792, hidden=512, layers=6)
    size = sum(map(len, files.values()))
    seeded = random.Random(name)  # noqa: S311
    # Not so near the end that the process is done before the signal is there.
    points = [0.0, *sorted(seeded.uniform(0, 0.9 * size) for _ in range(KILLS))]
    # Shards that lay there whole after a kill, and how many requests there had been by then.
    finished: dict[str, int] = {}
    with HUBS[name](files | UNWANTED, rate=size) as hub:
        for before, point in pairwise(points):
            killed = send_signal(start(workspace, name, hub), signal.SIGKILL, hub, point - before)
            assert killed.status == -signal.SIGKILL, killed.err
            assert not is_taken_for_a_model(workspace)
            for file, text in fetched_so_far(workspace, files).items():
                assert text == files[file]
                if file.endswith(".safetensors"):
                    finished.setdefault(file, len(hub.log))
        done = finish(workspace, name, hub)
        assert done.status == 0, done.err
        assert content(workspace.folder / FOLDER, files) == files
        assert is_taken_for_a_model(workspace)
        for file, requests in finished.items():
            assert not [request for request in hub.log[requests:] if request.file == file and request.sent], file
        assert finished
    assert not (workspace.folder / f"{FOLDER}.part").exists()
    assert not list((workspace.folder / FOLDER).rglob("*incomplete*"))


@BOTH
def test_goes_on_inside_a_shard(name: str, workspace: Workspace) -> None:
    files = sharded(nano_tokenizer(), vocab=16000, hidden=512, layers=1)
    size = sum(map(len, files.values()))
    large = [file for file, text in files.items() if len(text) > LARGE]
    with HUBS[name](files, rate=size) as hub:
        send_signal(start(workspace, name, hub), signal.SIGKILL, hub, 0.8 * size)
        requests = len(hub.log)
        done = finish(workspace, name, hub)
        assert done.status == 0, done.err
        assert content(workspace.folder / FOLDER, files) == files
        again = [request for request in hub.log[requests:] if request.file in large and request.sent]
        assert again
        assert all(request.start for request in again)
        # What was on its way when it was killed, and no more.
        assert hub.sent < 1.1 * size


@BOTH
def test_killed_once_all_is_there(name: str, workspace: Workspace) -> None:
    """While it verifies, corrects the tokenizer and puts the folder in its place."""
    # The real tokenizer needs correcting, which takes transformers and its time: once is enough.
    real = name == "huggingface" and YI_TOKENIZER.is_dir()
    files = sharded(yi_tokenizer() if real else nano_tokenizer(), vocab=64000 if real else 1792, hidden=64)
    size = sum(map(len, files.values()))
    with HUBS[name](files, rate=20 * size) as hub:
        for later in (0.0, 0.2, 1.0, 2.0):
            process = start(workspace, name, hub)
            while hub.sent < size and process.poll() is None:
                time.sleep(0.002)
            time.sleep(later)
            process.kill()
            process.communicate()
        done = finish(workspace, name, hub)
        assert done.status == 0, done.err
    unchanged = {file for file in files if file != "tokenizer_config.json"}
    assert content(workspace.folder / FOLDER, {file: files[file] for file in unchanged}) == {
        file: files[file] for file in unchanged
    }
    assert is_taken_for_a_model(workspace)
    assert not (workspace.folder / f"{FOLDER}.part").exists()


@BOTH
def test_interrupted(name: str, workspace: Workspace) -> None:
    files = sharded(nano_tokenizer(), vocab=1792, hidden=256)
    size = sum(map(len, files.values()))
    with HUBS[name](files, rate=size / 2) as hub:
        done = send_signal(start(workspace, name, hub), signal.SIGINT, hub, size / 2)
        assert done.status == 130, done.err
        assert "Traceback" not in done.err
        assert not is_taken_for_a_model(workspace)
        hub.rate = None
        again = finish(workspace, name, hub)
        assert again.status == 0, again.err
        assert content(workspace.folder / FOLDER, files) == files


@BOTH
def test_disk_fills_up_on_the_way(name: str, tmp_path: Path) -> None:
    files = sharded(nano_tokenizer(), vocab=1792, hidden=256)
    size = sum(map(len, files.values()))
    disk = tmp_path / "small disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        workspace = Workspace(disk)
        with HUBS[name](files, rate=size / 2) as hub:
            process = start(workspace, name, hub)
            while hub.sent < size / 4 and process.poll() is None:
                time.sleep(0.01)
            # Somebody else's file takes all there is.
            filler = disk / "filler"
            with filler.open("wb") as file:
                while True:
                    try:
                        file.write(bytes(1 << 16))
                        file.flush()
                    except OSError:
                        break
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1, err
            assert "disk" in err
            assert "Traceback" not in err
            assert not is_taken_for_a_model(workspace)
            filler.unlink()
            hub.rate = None
            again = finish(workspace, name, hub)
            assert again.status == 0, again.err
            assert content(workspace.folder / FOLDER, files) == files
    finally:
        subprocess.run(["umount", disk], check=True)
