"""The real Yi tokenizer as LLaMA-Factory loads it, before and after yi-tune's correction."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.hubs.models import YI_TOKENIZER
from yi_tune.engine.tokenizer import CONFIG, ORIGINAL, correct_tokenizer, warn_of_tokenizer
from yi_tune.models import CATALOGUE, FileOrigin, Origin, read_origin, sha256

pytestmark = pytest.mark.skipif(not YI_TOKENIZER.is_dir(), reason=f"the real Yi tokenizer is not at {YI_TOKENIZER}")

# From ../shared/yi-tokenizer/README.md.
CONVERSATION = [{"role": "user", "content": "你是谁"}, {"role": "assistant", "content": ""}]
TRAINED = [6, 3903, 144, 13961, 60638, 7, 144, 6, 765, 13611, 144]


def yi_folder(folder: Path, **config: Any) -> Origin:
    """A model folder with the real tokenizer, with `config` changed in its configuration; returns its record."""
    folder.mkdir()
    shutil.copy(YI_TOKENIZER / "tokenizer.model", folder)
    published = json.loads((YI_TOKENIZER / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(published | config), encoding="utf-8")
    shutil.copy(CATALOGUE["nano"].path(Path()) / "config.json", folder)
    files = {path.name: FileOrigin(path.stat().st_size, sha256(path)) for path in folder.iterdir()}
    return Origin("huggingface", "01-ai/Yi-1.5-6B-Chat", None, "0" * 40, files)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def loaded_by_llamafactory(folder: Path) -> tuple[list[int], Any]:
    """The ids of CONVERSATION up to where the reply begins, and the tokenizer."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, get_infer_args
    from llamafactory.model import load_tokenizer

    config = {"model_name_or_path": str(folder), "template": "yi", "finetuning_type": "lora"}
    tokenizer = load_tokenizer(get_infer_args(config)[0])["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="yi"))
    return list(template.encode_oneturn(tokenizer, CONVERSATION, "")[0]), tokenizer


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=1000)


def test_correction_holds_for_llamafactory(tmp_path: Path, console: Console) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "Yi"
    origin = yi_folder(cache)
    in_cache = content(cache)
    folder.mkdir()
    for name in in_cache:
        (folder / name).symlink_to(cache / name)
    published = in_cache[CONFIG]
    # As published: a stray 59568 after <|im_end|>, and other ids for user and assistant.
    assert loaded_by_llamafactory(folder)[0] == [6, 2942, 144, 13961, 60638, 7, 59568, 144, 6, 14135, 144]

    corrected = correct_tokenizer(folder, origin, console)
    ids, tokenizer = loaded_by_llamafactory(folder)
    assert ids == TRAINED
    text = " a space first, 我是Yi。\n\n1 + 1 = 2"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text

    # What was done is said, recorded, and can be undone.
    assert '"add_prefix_space": false' in console.export_text(clear=False)
    assert '"add_prefix_space": false' in corrected.corrected
    assert (folder / ORIGINAL).read_bytes() == published
    assert corrected.files[ORIGINAL] == origin.files[CONFIG]
    assert corrected.files[CONFIG].sha256 == sha256(folder / CONFIG)
    before = json.loads(published)
    after = json.loads((folder / CONFIG).read_bytes())
    assert {key for key in after if after[key] != before.get(key)} == {"add_prefix_space"}
    assert set(before) <= set(after)

    # And not done again, nor in the cache.
    corrected.write(folder)
    assert read_origin(folder) == corrected == correct_tokenizer(folder, corrected, console)
    assert content(cache) == in_cache


@pytest.mark.parametrize(("tokenizer_class", "old"), [("LlamaTokenizer", True), ("PreTrainedTokenizerFast", False)])
def test_with_a_tokenizer_json_beside(tokenizer_class: str, old: bool, tmp_path: Path, console: Console) -> None:
    from transformers import AutoTokenizer

    origin = yi_folder(tmp_path / "Yi", tokenizer_class=tokenizer_class)
    yi_folder(tmp_path / "published")
    AutoTokenizer.from_pretrained(tmp_path / "published").save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    if old:  # as transformers 4 wrote it
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        prepend = {"type": "Prepend", "prepend": "▁"}
        saved |= {"normalizer": {"type": "Sequence", "normalizers": [prepend, replace]}, "pre_tokenizer": None}
    (tmp_path / "Yi" / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    assert loaded_by_llamafactory(tmp_path / "Yi")[0] != TRAINED
    assert correct_tokenizer(tmp_path / "Yi", origin, console).corrected
    assert loaded_by_llamafactory(tmp_path / "Yi")[0] == TRAINED


def test_folder_of_the_users_own_is_warned_of_and_left_alone(tmp_path: Path, console: Console) -> None:
    yi_folder(tmp_path / "Yi")
    before = content(tmp_path / "Yi")
    warn_of_tokenizer(tmp_path / "Yi", console)
    assert '"add_prefix_space": false' in console.export_text()
    assert content(tmp_path / "Yi") == before
    yi_folder(tmp_path / "right", add_prefix_space=False)
    warn_of_tokenizer(tmp_path / "right", console)
    assert console.export_text() == ""


def test_no_known_correction(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yi_tune.engine.tokenizer._loaded_ids", lambda *_, **__: [1])
    origin = yi_folder(tmp_path / "Yi")
    assert correct_tokenizer(tmp_path / "Yi", origin, console) is origin
    assert "Warning" in console.export_text()
