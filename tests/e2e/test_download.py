"""`yi-tune download` as a whole process; one that was killed, interrupted or ran out of disk goes on where it stopped.

tests/test_hubs.py and tests/test_fetch.py have what needs no process.
"""

import random
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pexpect
import pytest

from tests.e2e.conftest import YI_TUNE, Done, SmallDisk, Workspace
from tests.hubs import Hub, HuggingFace, ModelScope
from tests.hubs.machine import environment
from tests.hubs.models import UNWANTED, YI_TOKENIZER, nano_tokenizer, sharded, yi_tokenizer
from yi_tune.errors import YiTuneError
from yi_tune.models import find_model
from yi_tune.weights import check_model

SMALL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
LARGER = sharded(nano_tokenizer(), vocab=1792, hidden=256)
FOLDER = Path("models") / "Yi-1.5-6B-Chat"
KILLS = 6


def size_of(files: dict[str, bytes]) -> int:
    return sum(map(len, files.values()))


def point(workspace: Workspace, hub: Hub, **more: str) -> dict[str, str]:
    """The environment in which there is that hub alone."""
    return environment(workspace.folder.parent, **{type(hub).__name__.lower(): hub.address}, **more)


def start(workspace: Workspace, hub: Hub) -> "subprocess.Popen[str]":
    source = type(hub).__name__.lower()
    return workspace.start("download", "yi-1.5-6b-chat", "--source", source, env=point(workspace, hub))


def wait_until_sent(hub: Hub, target: float, process: "subprocess.Popen[str]") -> None:
    while hub.sent < target and process.poll() is None:
        time.sleep(0.002)


def send_signal(workspace: Workspace, number: signal.Signals, hub: Hub, sent: float) -> Done:
    """Start a download, and send a signal once the hub has sent so many bytes more."""
    process, target = start(workspace, hub), hub.sent + sent
    wait_until_sent(hub, target, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def finish(workspace: Workspace, hub: Hub, files: dict[str, bytes]) -> str:
    """Download to the end; all is there then. Returns what is said."""
    process = start(workspace, hub)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert content(workspace.folder / FOLDER, files) == files
    assert is_taken_for_a_model(workspace)
    assert not (workspace.folder / f"{FOLDER}.part").exists()
    return err


def is_taken_for_a_model(workspace: Workspace) -> bool:
    try:
        check_model(find_model("yi-1.5-6b-chat", workspace.folder))
    except YiTuneError:
        return False
    return True


def content(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in files if (folder / file).is_file()}


def test_interrupted_finished_and_found_by_train(workspace: Workspace) -> None:
    with ModelScope(LARGER, rate=size_of(LARGER) / 6) as hub:  # slow: a busy machine may be late with the signal
        done = send_signal(workspace, signal.SIGINT, hub, size_of(LARGER) / 3)
        assert done.status == 130, done.err
        assert "Traceback" not in done.err
        assert not is_taken_for_a_model(workspace)
        said = finish(workspace, hub, LARGER)
        env = point(workspace, hub)
    # About ten plain lines, as stderr is no terminal.
    assert " is here: " in said
    assert not set("\r\x1b") & set(said)
    assert len(said.splitlines()) < 20
    # Offline, with the hub gone.
    began = time.monotonic()
    offline = workspace.yi_tune("download", env=env)
    assert offline.status == 0, offline.err
    assert time.monotonic() - began < 4  # and not the patience that a hub would have
    dry = workspace.yi_tune("train", "--name", "X", "--author", "Y", "--dry-run", env=env)
    assert dry.status == 0, dry.err
    assert str(workspace.folder / FOLDER) in dry.out
    assert "not downloaded" not in dry.err


def test_progress_bar_on_a_terminal(workspace: Workspace) -> None:
    """From the hub that the environment points at, and no other."""
    with ModelScope(SMALL, rate=size_of(SMALL) / 3) as hub:
        env = point(workspace, hub, TERM="xterm-256color")
        del env["HF_ENDPOINT"]
        command, *arguments = [*YI_TUNE, "download"]
        terminal = pexpect.spawn(
            command, arguments, cwd=workspace.folder, env=env, encoding="utf-8", timeout=60, dimensions=(24, 120)
        )
        terminal.expect(r"[kM]B/s")
        terminal.expect(pexpect.EOF)
        terminal.close()
    assert terminal.exitstatus == 0
    assert "Traceback" not in terminal.before
    assert "Hugging Face" not in terminal.before
    assert content(workspace.folder / FOLDER, SMALL) == SMALL


@pytest.mark.parametrize("killed", [False, True])
def test_two_at_once(killed: bool, workspace: Workspace) -> None:
    """The second waits for the first, and goes on if that is killed."""
    with HuggingFace(SMALL, rate=size_of(SMALL)) as hub:
        first = start(workspace, hub)
        wait_until_sent(hub, 1, first)
        second = start(workspace, hub)
        assert second.stderr is not None
        assert "Another process" in second.stderr.readline()
        if killed:
            first.kill()
        ended = [process.communicate(timeout=60)[1] for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [-signal.SIGKILL if killed else 0, 0], ended
        # Nor is anything fetched twice.
        assert killed or hub.sent == size_of(SMALL)
    assert content(workspace.folder / FOLDER, SMALL) == SMALL


def test_killed_time_and_again(workspace: Workspace) -> None:
    files = sharded(nano_tokenizer(), vocab=1792, hidden=512, layers=6)
    size = size_of(files)
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
    with HuggingFace(files, rate=20 * size_of(files)) as hub:
        for later in (0.0, 0.3, 1.5):
            process = start(workspace, hub)
            wait_until_sent(hub, size_of(files), process)
            time.sleep(later)
            process.kill()
            process.communicate()
        finish(workspace, hub, {name: text for name, text in files.items() if name != "tokenizer_config.json"})


def test_disk_fills_up_on_the_way(small_disk: SmallDisk) -> None:
    disk = small_disk("40m")
    workspace, filler = Workspace(disk), disk / "filler"
    with HuggingFace(LARGER, rate=size_of(LARGER) / 2) as hub:
        process = start(workspace, hub)
        wait_until_sent(hub, size_of(LARGER) / 4, process)
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
        finish(workspace, hub, LARGER)
