"""A download that was killed, interrupted or ran out of disk goes on where it stopped."""

import random
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.conftest import Done, Workspace
from tests.hubs import HUBS, Hub, HuggingFace, ModelScope
from tests.hubs.machine import environment
from tests.hubs.models import UNWANTED, YI_TOKENIZER, nano_tokenizer, sharded, yi_tokenizer
from yi_tune.errors import YiTuneError
from yi_tune.models import check_model, find_model

FOLDER = Path("models") / "Yi-1.5-6B-Chat"
KILLS = 10


def start(workspace: Workspace, hub: Hub) -> "subprocess.Popen[str]":
    name = next(name for name, known in HUBS.items() if isinstance(hub, known))
    env = environment(workspace.folder.parent, **{name: hub.address})
    return workspace.start("download", "yi-1.5-6b-chat", "--source", name, env=env)


def send_signal(workspace: Workspace, number: signal.Signals, hub: Hub, sent: float) -> Done:
    """Start a download, and send a signal once the hub has sent so many bytes more."""
    process, target = start(workspace, hub), hub.sent + sent
    while hub.sent < target and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def finish(workspace: Workspace, hub: Hub, files: dict[str, bytes]) -> None:
    """Download to the end; all is there then."""
    process = start(workspace, hub)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert content(workspace.folder / FOLDER, files) == files
    assert is_taken_for_a_model(workspace)
    assert not (workspace.folder / f"{FOLDER}.part").exists()


def is_taken_for_a_model(workspace: Workspace) -> bool:
    try:
        check_model(find_model("yi-1.5-6b-chat", workspace.folder))
    except YiTuneError:
        return False
    return True


def content(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in files if (folder / file).is_file()}


def test_killed_ten_times_over(workspace: Workspace) -> None:
    files = sharded(nano_tokenizer(), vocab=1792, hidden=512, layers=6)
    size = sum(map(len, files.values()))
    seeded = random.Random(1)  # noqa: S311
    # Not so near the end that the process is done before the signal is there.
    points = [0.0, *sorted(seeded.uniform(0, 0.9 * size) for _ in range(KILLS))]
    # Shards that lay there whole after a kill, and how many requests there had been by then.
    finished: dict[str, int] = {}
    with HuggingFace(files | UNWANTED, rate=size) as hub:
        for before, point in pairwise(points):
            killed = send_signal(workspace, signal.SIGKILL, hub, point - before)
            assert killed.status == -signal.SIGKILL, killed.err
            assert not is_taken_for_a_model(workspace)
            # What has been finished of a model that is not waits beside the model's place.
            for file, text in content(workspace.folder / f"{FOLDER}.part", files).items():
                assert text == files[file]
                if file.endswith(".safetensors"):
                    finished.setdefault(file, len(hub.log))
        finish(workspace, hub, files)
        for file, requests in finished.items():
            assert not [request for request in hub.log[requests:] if request.file == file and request.sent], file
        assert finished
        # Others went on inside, and what had come came once.
        assert [request for request in hub.log if request.start]
        assert hub.sent < 1.5 * size
    assert not list((workspace.folder / FOLDER).rglob("*incomplete*"))


def test_killed_once_all_is_there(workspace: Workspace) -> None:
    """While it verifies, corrects the tokenizer and puts the folder in its place."""
    real = YI_TOKENIZER.is_dir()  # the real tokenizer needs correcting
    files = sharded(yi_tokenizer() if real else nano_tokenizer(), vocab=64000 if real else 1792, hidden=64)
    size = sum(map(len, files.values()))
    with HuggingFace(files, rate=20 * size) as hub:
        for later in (0.0, 0.2, 1.0, 2.0):
            process = start(workspace, hub)
            while hub.sent < size and process.poll() is None:
                time.sleep(0.002)
            time.sleep(later)
            process.kill()
            process.communicate()
        finish(workspace, hub, {name: text for name, text in files.items() if name != "tokenizer_config.json"})


def test_interrupted(workspace: Workspace) -> None:
    files = sharded(nano_tokenizer(), vocab=1792, hidden=256)
    size = sum(map(len, files.values()))
    with ModelScope(files, rate=size / 2) as hub:
        done = send_signal(workspace, signal.SIGINT, hub, size / 2)
        assert done.status == 130, done.err
        assert "Traceback" not in done.err
        assert not is_taken_for_a_model(workspace)
        hub.rate = None
        finish(workspace, hub, files)


def test_disk_fills_up_on_the_way(tmp_path: Path) -> None:
    files = sharded(nano_tokenizer(), vocab=1792, hidden=256)
    size = sum(map(len, files.values()))
    disk = tmp_path / "small disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        workspace, filler = Workspace(disk), disk / "filler"
        with HuggingFace(files, rate=size / 2) as hub:
            process = start(workspace, hub)
            while hub.sent < size / 4 and process.poll() is None:
                time.sleep(0.01)
            # Somebody else's file takes all there is.
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(1 << 16)):
                        pass
                except OSError:
                    pass
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1, err
            assert "disk" in err
            assert "Traceback" not in err
            assert not is_taken_for_a_model(workspace)
            filler.unlink()
            hub.rate = None
            finish(workspace, hub, files)
    finally:
        subprocess.run(["umount", disk], check=True)
