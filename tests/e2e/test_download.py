"""`yi-tune download` as a whole process; tests/test_hubs.py and tests/test_fetch.py have what needs none."""

import time

import pexpect
import pytest

from tests.e2e.conftest import YI_TUNE, Workspace
from tests.hubs import HuggingFace, ModelScope
from tests.hubs.machine import environment
from tests.hubs.models import nano_tokenizer, sharded

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
SIZE = sum(map(len, MODEL.values()))


def content(workspace: Workspace) -> dict[str, bytes]:
    """The files that a load may read in the model's folder."""
    folder = workspace.folder / "models" / "Yi-1.5-6B-Chat"
    return {name: (folder / name).read_bytes() for name in MODEL}


@pytest.mark.alone
def test_train_finds_the_model(workspace: Workspace) -> None:
    """In about ten plain lines, as stderr is no terminal."""
    with HuggingFace(MODEL, rate=SIZE / 3) as hub:
        env = environment(workspace.folder.parent, huggingface=hub.address)
        done = workspace.yi_tune("download", "yi-1.5-6b-chat", "--source", "huggingface", env=env)
    assert done.status == 0, done.err
    assert content(workspace) == MODEL
    assert " is here: " in done.err
    assert not set("\r\x1b") & set(done.err)
    assert len(done.err.splitlines()) < 20
    # Offline, with the hub gone.
    began = time.monotonic()
    offline = workspace.yi_tune("download", env=env)
    assert offline.status == 0, offline.err
    assert time.monotonic() - began < 2
    dry = workspace.yi_tune("train", "--name", "X", "--author", "Y", "--dry-run", env=env)
    assert dry.status == 0, dry.err
    assert str(workspace.folder / "models" / "Yi-1.5-6B-Chat") in dry.out
    assert "not downloaded" not in dry.err


def test_progress_bar_on_a_terminal(workspace: Workspace) -> None:
    """From the hub that the environment points at, and no other."""
    with ModelScope(MODEL, rate=SIZE / 3) as hub:
        env = environment(workspace.folder.parent, modelscope=hub.address, TERM="xterm-256color")
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
    assert content(workspace) == MODEL


def test_two_at_once(workspace: Workspace) -> None:
    with HuggingFace(MODEL, rate=SIZE) as hub:
        env = environment(workspace.folder.parent, huggingface=hub.address)
        both = [workspace.start("download", env=env) for _ in range(2)]
        errors = [process.communicate(timeout=60)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        # Nor is anything fetched twice.
        assert hub.sent == SIZE
    assert content(workspace) == MODEL


def test_one_of_two_is_killed_and_the_other_goes_on(workspace: Workspace) -> None:
    with HuggingFace(MODEL, rate=SIZE) as hub:
        env = environment(workspace.folder.parent, huggingface=hub.address)
        first = workspace.start("download", env=env)
        while hub.sent == 0:
            time.sleep(0.01)
        second = workspace.start("download", env=env)
        assert second.stderr is not None
        assert "Another process" in second.stderr.readline()
        first.kill()
        first.communicate()
        _, error = second.communicate(timeout=60)
        assert second.returncode == 0, error
    assert content(workspace) == MODEL
