"""`yi-tune download` with the hubs' real clients against two small hubs on loopback."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from tests.e2e.conftest import YI_TUNE, Workspace
from tests.hubs import ALWAYS, HUBS, Fault, Hub, HuggingFace, ModelScope, refusing, silent
from tests.hubs.machine import environment
from tests.hubs.models import UNWANTED, YI_TOKENIZER, nano_tokenizer, sharded, yi_tokenizer
from yi_tune.models import check_model, find_model

MODEL = sharded(nano_tokenizer(), vocab=1792, hidden=128)
SHARDS = [name for name in MODEL if name.endswith(".safetensors")]
DRY_RUN = ("train", "--name", "X", "--author", "Y", "--dry-run")
BOTH = pytest.mark.parametrize("hub_class", HUBS.values(), ids=HUBS)


def name_of(hub_class: type[Hub]) -> str:
    return next(name for name, known in HUBS.items() if known is hub_class)


def content(folder: Path) -> dict[str, bytes]:
    """The files that a load may read in a model folder; what only yi-tune and the clients read is left out."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name in MODEL}


@pytest.fixture
def model(workspace: Workspace) -> Path:
    """Where the model is to lie."""
    return workspace.folder / "models" / "Yi-1.5-6B-Chat"


@pytest.mark.alone
@BOTH
def test_each_source_and_train_finds_the_model(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    with hub_class(MODEL | UNWANTED) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address})
        done = workspace.yi_tune("download", "yi-1.5-6b-chat", "--source", name, env=env)
        assert done.status == 0, done.err
        assert content(model) == MODEL
        assert not [path for path in model.rglob("*") if path.suffix in (".bin", ".pt", ".py", ".onnx", ".incomplete")]
        assert not [name for name in UNWANTED if hub.fetched(name)]
        # Each file once.
        assert {name: len(hub.fetched(name)) for name in MODEL} == dict.fromkeys(MODEL, 1)
        asked = len(hub.log)
        began = time.monotonic()
        again = workspace.yi_tune("download", env=env)
        assert again.status == 0
        assert time.monotonic() - began < 2
        assert len(hub.log) == asked
    # Offline, with the hub gone.
    offline = workspace.yi_tune("download", "yi-1.5-6b-chat", "--source", name, env=env)
    assert offline.status == 0, offline.err
    dry = workspace.yi_tune(*DRY_RUN, env=env)
    assert dry.status == 0, dry.err
    assert str(model) in dry.out
    assert "not downloaded" not in dry.err


@BOTH
def test_revision_and_commit_are_recorded(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    with hub_class(MODEL) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address})
        wrong = workspace.yi_tune("download", "--source", name, "--revision", "v9", env=env)
        assert wrong.status == 1
        assert "v9" in wrong.err
        assert "Traceback" not in wrong.err
        assert workspace.yi_tune("download", "--source", name, env=env).status == 0
        first = json.loads((model / "download.json").read_text())
        assert (first["source"], first["repository"], first["revision"]) == (name, hub_class.repository, None)
        assert re.fullmatch(r"[0-9a-f]{40}", first["commit"])
        # Another revision takes its place; the commit that is here already asks nobody.
        assert workspace.yi_tune("download", "--source", name, "--revision", "v1", env=env).status == 0
        record = json.loads((model / "download.json").read_text())
        assert record["revision"] == "v1"
        asked = len(hub.log)
        assert workspace.yi_tune("download", "--revision", record["commit"], env=env).status == 0
        assert len(hub.log) == asked
    assert content(model) == MODEL


@pytest.mark.alone
@pytest.mark.parametrize("dead", HUBS)
def test_auto_with_one_hub_down(dead: str, workspace: Workspace, model: Path) -> None:
    alive = next(name for name in HUBS if name != dead)
    with refusing() as nobody, HUBS[alive](MODEL) as hub:
        env = environment(workspace.folder.parent, **{dead: nobody, alive: hub.address})
        began = time.monotonic()
        done = workspace.yi_tune("download", "yi-1.5-6b-chat", env=env)
        assert done.status == 0, done.err
        assert time.monotonic() - began < 10
    assert content(model) == MODEL
    # Said of the hub that was down, if it was asked at all.
    if alive == "modelscope":
        assert "Hugging Face" in done.err
        assert "cannot be reached" in done.err
        assert "ModelScope" in done.err
    assert workspace.yi_tune(*DRY_RUN, env=env).status == 0


@pytest.mark.alone
@pytest.mark.parametrize("dead", HUBS)
def test_auto_with_a_hub_that_never_answers(dead: str, workspace: Workspace, model: Path) -> None:
    alive = next(name for name in HUBS if name != dead)
    with silent() as address, HUBS[alive](MODEL) as hub:
        env = environment(workspace.folder.parent, **{dead: address, alive: hub.address})
        began = time.monotonic()
        done = workspace.yi_tune("download", "yi-1.5-6b-chat", env=env)
        assert done.status == 0, done.err
        assert time.monotonic() - began < 15
        assert content(model) == MODEL
        # Alone, it is given up on as soon.
        began = time.monotonic()
        alone = workspace.yi_tune("download", "yi-1.5-9b-chat", "--source", dead, env=env)
        assert alone.status == 1
        assert time.monotonic() - began < 20
    assert "does not answer" in alone.err
    assert "Traceback" not in alone.err
    if alive == "modelscope":
        assert "does not answer" in done.err


def test_auto_leaves_a_hub_that_gives_wrong_bytes(workspace: Workspace, model: Path) -> None:
    with HuggingFace(MODEL) as first, ModelScope(MODEL) as second:
        first.faults = [Fault(f"*{SHARDS[1]}*", "flip", ALWAYS, at=5000)]
        second.faults = []
        env = environment(workspace.folder.parent, huggingface=first.address, modelscope=second.address)
        done = workspace.yi_tune("download", env=env)
        assert done.status == 0, done.err
        assert content(model) == MODEL


def test_both_hubs_down(workspace: Workspace, model: Path) -> None:
    with refusing() as one, refusing() as other:
        env = environment(workspace.folder.parent, huggingface=one, modelscope=other)
        done = workspace.yi_tune("download", env=env)
    assert done.status == 1
    assert "Traceback" not in done.err
    assert "Hugging Face" in done.err
    assert "ModelScope" in done.err
    # The way out: a mirror.
    assert "HF_ENDPOINT" in done.err
    assert not model.exists() or not content(model)


def test_a_machine_that_is_pointed_at_modelscope_asks_it_first(workspace: Workspace, model: Path) -> None:
    with ModelScope(MODEL) as hub:
        env = environment(workspace.folder.parent, modelscope=hub.address)
        del env["HF_ENDPOINT"]
        done = workspace.yi_tune("download", env=env)
    assert done.status == 0, done.err
    assert "Hugging Face" not in done.err
    assert content(model) == MODEL


def test_domain_variable_of_modelscope(workspace: Workspace, model: Path) -> None:
    with ModelScope(MODEL) as hub:
        env = environment(workspace.folder.parent, MODELSCOPE_DOMAIN=hub.address)
        del env["MODELSCOPE_ENDPOINT"]
        done = workspace.yi_tune("download", "--source", "modelscope", env=env)
    assert done.status == 0, done.err
    assert "Warning" not in done.err
    assert content(model) == MODEL


@BOTH
def test_two_at_once(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    size = sum(map(len, MODEL.values()))
    with hub_class(MODEL, rate=size) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address})
        both = [workspace.start("download", "--source", name, env=env) for _ in range(2)]
        errors = [process.communicate(timeout=60)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        # Nor is anything fetched twice.
        assert hub.sent == size
    assert content(model) == MODEL


def test_one_of_two_is_killed_and_the_other_goes_on(workspace: Workspace, model: Path) -> None:
    size = sum(map(len, MODEL.values()))
    with HuggingFace(MODEL, rate=size) as hub:
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
    assert content(model) == MODEL


@BOTH
def test_token_is_used_and_never_shown(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    secret = "hf_Qx7vZk2Lm9"  # noqa: S105
    with hub_class(MODEL, token=secret) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address})
        refused = workspace.yi_tune("download", "--source", name, env=env)
        assert refused.status == 1
        assert hub_class.token_variable in refused.err
        wrong = workspace.yi_tune("download", "--source", name, env=env | {hub_class.token_variable: "hf_Wrong5ecret"})
        assert wrong.status == 1
        assert "hf_Wrong5ecret" not in wrong.out + wrong.err
        env[hub_class.token_variable] = secret
        done = workspace.yi_tune("download", "--source", name, env=env | {"YI_TUNE_DEBUG": "1"})
        assert done.status == 0, done.err
        # The CDN is another host: it gets none.
        assert [request for request in hub.log if request.host.startswith("localhost")]
        assert not hub.leaks
    assert secret not in done.out + done.err
    written = [path for path in workspace.folder.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert content(model) == MODEL


LOG_IN = {
    "huggingface": "from huggingface_hub import constants; from pathlib import Path; "
    "path = Path(constants.HF_TOKEN_PATH); path.parent.mkdir(parents=True); path.write_text('hf_Qx7vZk2Lm9')",
    "modelscope": "from modelscope_hub.config import HubConfig; HubConfig().save_token('hf_Qx7vZk2Lm9')",
}


@BOTH
def test_login_of_the_hubs_client(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    with hub_class(MODEL, token="hf_Qx7vZk2Lm9") as hub:  # noqa: S106
        env = environment(workspace.folder.parent, **{name: hub.address})
        subprocess.run([sys.executable, "-c", LOG_IN[name]], env=env, check=True)
        done = workspace.yi_tune("download", "--source", name, env=env)
        assert done.status == 0, done.err
        assert not hub.leaks
    assert content(model) == MODEL


@BOTH
def test_token_does_not_follow_a_redirect(hub_class: type[Hub], workspace: Workspace) -> None:
    name = name_of(hub_class)
    with hub_class(MODEL) as elsewhere, hub_class(MODEL) as hub:
        target = f"http://localhost:{elsewhere.server_port}/cdn/{SHARDS[1]}"
        hub.faults = [Fault(f"*{SHARDS[1]}*", "redirect", ALWAYS, to=target)]
        env = environment(workspace.folder.parent, **{name: hub.address, hub_class.token_variable: "hf_Qx7vZk2Lm9"})
        done = workspace.yi_tune("download", "--source", name, env=env)
        assert done.status == 0, done.err
        assert elsewhere.log
        assert not elsewhere.leaks


@BOTH
def test_disk_too_small(hub_class: type[Hub], tmp_path: Path) -> None:
    name = name_of(hub_class)
    disk = tmp_path / "small disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        with hub_class(MODEL) as hub:
            env = environment(tmp_path, **{name: hub.address})
            full = Workspace(disk).yi_tune("download", "--source", name, env=env)
            assert full.status == 1
            assert "disk" in full.err
            assert "free" in full.err
            assert "Traceback" not in full.err
            # Found out before the first byte.
            assert hub.sent == 0
            subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
            again = Workspace(disk).yi_tune("download", "--source", name, env=env)
            assert again.status == 0, again.err
        assert content(disk / "models" / "Yi-1.5-6B-Chat") == MODEL
    finally:
        subprocess.run(["umount", disk], check=True)


FILL_CACHE = {
    "huggingface": "from huggingface_hub import snapshot_download; snapshot_download('01-ai/Yi-1.5-6B-Chat')",
    "modelscope": "from modelscope_hub import HubApi; HubApi().download_repo('01ai/Yi-1.5-6B-Chat', 'model')",
}


@BOTH
def test_copy_in_the_hubs_cache_is_used_in_place(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    home = workspace.folder.parent
    with hub_class(MODEL) as hub:
        env = environment(home, **{name: hub.address})
        subprocess.run([sys.executable, "-c", FILL_CACHE[name]], env=env, check=True, capture_output=True)
        assert hub.sent == sum(map(len, MODEL.values()))
    done = workspace.yi_tune("download", "yi-1.5-6b-chat", env=env)
    assert done.status == 0, done.err
    # No second copy of the weights.
    copies = [path for path in workspace.folder.rglob("*.safetensors") if not path.is_symlink()]
    assert not copies
    check_model(find_model("yi-1.5-6b-chat", workspace.folder))
    listed = json.loads(workspace.yi_tune("models", "--json", env=env).out)
    assert next(entry for entry in listed if entry["name"] == "yi-1.5-6b-chat")["path"]


def test_damaged_copy_in_the_cache_is_found_by_verify(workspace: Workspace, model: Path) -> None:
    with HuggingFace(MODEL) as hub:
        env = environment(workspace.folder.parent, huggingface=hub.address)
        subprocess.run([sys.executable, "-c", FILL_CACHE["huggingface"]], env=env, check=True, capture_output=True)
        assert workspace.yi_tune("download", env=env).status == 0
        cached = (model / SHARDS[1]).resolve()
        damaged = bytearray(MODEL[SHARDS[1]])
        damaged[-1] ^= 0xFF
        cached.write_bytes(damaged)
        healed = workspace.yi_tune("download", "--verify", env=env)
        assert healed.status == 0, healed.err
        assert SHARDS[1] in healed.err
    assert content(model) == MODEL
    # The cache is Hugging Face's own to mend.
    assert cached.read_bytes() == damaged


@BOTH
def test_broken_copy_in_the_hubs_cache_is_not_used(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    home = workspace.folder.parent
    with hub_class(MODEL) as hub:
        env = environment(home, **{name: hub.address})
        subprocess.run([sys.executable, "-c", FILL_CACHE[name]], env=env, check=True, capture_output=True)
        cached = next(path for path in (home / name).rglob(SHARDS[1]))
        os.truncate(cached.resolve(), 1000)
        done = workspace.yi_tune("download", "yi-1.5-6b-chat", "--source", name, env=env)
        assert done.status == 0, done.err
        assert (model / SHARDS[1]).read_bytes() == MODEL[SHARDS[1]]
        assert content(model) == MODEL


def test_older_modelscope_cache(workspace: Workspace) -> None:
    env = environment(workspace.folder.parent)
    folder = Path(env["MODELSCOPE_CACHE"]) / "hub" / "models" / "01ai" / "Yi-1___5-6B-Chat"
    folder.mkdir(parents=True)
    for file, text in MODEL.items():
        (folder / file).write_bytes(text)
    done = workspace.yi_tune("download", env=env)
    assert done.status == 0, done.err
    check_model(find_model("yi-1.5-6b-chat", workspace.folder))


@BOTH
def test_verify(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    name = name_of(hub_class)
    with hub_class(MODEL) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address})
        assert workspace.yi_tune("download", "--source", name, env=env).status == 0
        sound = workspace.yi_tune("download", "--verify", env=env)
        assert sound.status == 0, sound.err
        damaged = bytearray(MODEL[SHARDS[2]])
        damaged[-1] ^= 0xFF
        (model / SHARDS[2]).write_bytes(damaged)
        before = len(hub.log)
        healed = workspace.yi_tune("download", "--verify", "--source", name, env=env)
        assert SHARDS[2] in healed.err
        assert healed.status == 0, healed.err
        assert content(model) == MODEL
        assert {request.file for request in hub.log[before:] if request.sent} & set(SHARDS) == {SHARDS[2]}


@BOTH
def test_progress_in_plain_lines(hub_class: type[Hub], workspace: Workspace) -> None:
    name = name_of(hub_class)
    with hub_class(MODEL, rate=sum(map(len, MODEL.values())) / 3) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address})
        done = workspace.yi_tune("download", "--source", name, env=env)
    assert done.status == 0, done.err
    assert "\r" not in done.err
    assert "\x1b" not in done.err
    assert len(done.err.splitlines()) < 20


@BOTH
def test_progress_bar_on_a_terminal(hub_class: type[Hub], workspace: Workspace) -> None:
    name = name_of(hub_class)
    with hub_class(MODEL, rate=sum(map(len, MODEL.values())) / 3) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address, "TERM": "xterm-256color"})
        command, *arguments = [*YI_TUNE, "download", "--source", name]
        terminal = pexpect.spawn(
            command, arguments, cwd=workspace.folder, env=env, encoding="utf-8", timeout=60, dimensions=(24, 120)
        )
        terminal.expect(r"[kM]B/s")
        terminal.expect(pexpect.EOF)
        terminal.close()
    assert terminal.exitstatus == 0
    assert "Traceback" not in terminal.before


def test_hub_id_and_folder_names(workspace: Workspace) -> None:
    with HuggingFace(MODEL) as hub:
        env = environment(workspace.folder.parent, huggingface=hub.address)
        done = workspace.yi_tune("download", "01-ai/Yi-1.5-6B-Chat", env=env)
        assert done.status == 0, done.err
        unknown = workspace.yi_tune("download", "somebody/nothing", "--source", "huggingface", env=env)
        assert unknown.status == 1
        assert "somebody/nothing" in unknown.err
    assert workspace.yi_tune("download", "nano", env=env).status == 0


@BOTH
def test_real_tokenizer(hub_class: type[Hub], workspace: Workspace, model: Path) -> None:
    if not YI_TOKENIZER.is_dir():
        pytest.skip(f"the real Yi tokenizer is not at {YI_TOKENIZER}")
    name = name_of(hub_class)
    files = sharded(yi_tokenizer(), vocab=64000, hidden=64)
    with hub_class(files) as hub:
        env = environment(workspace.folder.parent, **{name: hub.address})
        done = workspace.yi_tune("download", "--source", name, env=env)
        assert done.status == 0, done.err
        sent = hub.sent
        again = workspace.yi_tune("download", "--source", name, env=env)
        assert again.status == 0, again.err
        assert hub.sent == sent
    # Told what was corrected; the weights and the SentencePiece model are as the hub gave them.
    assert "tokenizer" in done.err
    for file in files:
        if file != "tokenizer_config.json":
            assert (model / file).read_bytes() == files[file]
    check_model(find_model("yi-1.5-6b-chat", workspace.folder))
