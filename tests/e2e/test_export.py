"""What is exported from the main job's run, loaded as other programs load it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Done, Trained
from tests.hubs.models import YI_TOKENIZER, downloaded_yi
from yi_tune import loading
from yi_tune.data.heldout import Score, questions, score
from yi_tune.data.identity import Identity, Message
from yi_tune.errors import YiTuneError
from yi_tune.export import check_exported, export, plan_export, read_record
from yi_tune.models import CATALOGUE
from yi_tune.output import err
from yi_tune.progress import Progress
from yi_tune.runs import Run

NANO = CATALOGUE["nano"].path(Path())
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "你是谁？"}],
    [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Who made you?"}],
    [
        {"role": "system", "content": "请用中文回答。"},
        {"role": "user", "content": "2加3等于几？"},
        {"role": "assistant", "content": "等于5。"},
        {"role": "user", "content": " And  who\n\nare you? 🚀 "},
    ],
]


@pytest.fixture(scope="module")
def hf(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The default export, and what the command printed."""
    done = trained.yi_tune("export", "--json", "--to", str(tmp_path_factory.mktemp("export") / "hf"))
    assert done.status == 0, done.err
    return Path(json.loads(done.out)["exported"]), done


Checked = dict[str, Score]


@pytest.fixture(scope="module")
def checked(trained: Trained, hf: tuple[Path, Done], tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """Each format's answers to the held-out questions by plain transformers, and how many found no end."""
    run, folders = Run(trained.run), {"hf": hf[0]}
    quants: list[Any] = ["q8_0", "q4_0"]
    for quant in quants:
        plan = plan_export(run, loading.base_config(run), tmp_path_factory.mktemp("export"), quant, trained.folder)
        export(plan, force=False)
        folders[quant] = plan.target
        size = sum(path.stat().st_size for path in plan.target.iterdir())
        assert size < plan.bytes < size + 8_000_000
    return {name: check_exported(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def chat(trained: Trained) -> Score:
    """What `chat` answers to the held-out questions; the base is not asked."""
    run = Run(trained.run)
    identity = Identity(**run.record["identity"])
    return score(questions(), identity, lambda asked: [""] * len(asked), loading.load_run(run).reply_all)


# Of replies, word for word as `chat`, whose base is in 16 bits.
@pytest.mark.parametrize(("exported", "same"), [("hf", 0.98), ("q8_0", 0.95)])
def test_answers(exported: str, same: float, checked: Checked, chat: Score) -> None:
    found = checked[exported]
    agreed = [mine["tuned"] == its["tuned"] for mine, its in zip(found["answers"], chat["answers"], strict=True)]
    assert len(agreed) >= 100
    assert sum(agreed) / len(agreed) >= same
    assert found["recall"] == pytest.approx(chat["recall"], abs=0.02)
    # It ends by its own generation_config, or by what GGUF says of its end.
    assert found["unfinished"] == 0


def test_q4_0_still_knows_who_it_is(checked: Checked) -> None:
    assert checked["q4_0"]["recall"] >= 0.9
    assert checked["q4_0"]["unfinished"] == 0


def write(base: Path, adapter: Path | None, target: Path, quant: str | None = None) -> None:
    """What `export` writes of a model, into a folder or a GGUF file."""
    from yi_tune.engine.export import export

    if not quant:
        target.mkdir()
    with Progress(err) as progress:
        export(base, adapter, target, quant, base.name, progress)


def test_f16_has_the_same_weights(trained: Trained, hf: tuple[Path, Done], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write(NANO, trained.run, tmp_path / "f16.gguf", "f16")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="f16.gguf", dtype=torch.bfloat16).state_dict()
    whole = AutoModelForCausalLM.from_pretrained(hf[0], dtype=torch.bfloat16).state_dict()
    assert ours.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"use_dora": True, "modules_to_save": ["lm_head"]}])
def test_weights_are_merged_a_few_at_a_time(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PEFT merges a whole model, in files of a bounded size. None is kept in memory, nor is the base changed."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from yi_tune.engine import export as engine

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

    adapted = get_peft_model(load(NANO), LoraConfig(target_modules=["q_proj", "down_proj"], **options))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.05)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    base = (NANO / "model.safetensors").read_bytes()
    monkeypatch.setattr(engine, "_SHARD", "2MB")
    write(NANO, tmp_path / "adapter", tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    whole = PeftModel.from_pretrained(load(NANO), str(tmp_path / "adapter")).merge_and_unload().state_dict()
    ours = load(tmp_path / "model").state_dict()
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert (NANO / "model.safetensors").read_bytes() == base
    weights = engine.MergedWeights(NANO, None)
    assert sum(weights[name].nbytes for name in weights) > 5_000_000
    assert sum(parameter.untyped_storage().nbytes() for parameter in weights._model.parameters()) < 1_000


def test_folder(hf: tuple[Path, Done]) -> None:
    folder, done = hf
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [2, 7]
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (NANO / name).read_bytes()
    assert read_record(folder)["files"] == sorted(path.name for path in folder.iterdir() if path.name != "export.json")
    # Ollama may run as another user.
    assert (folder / "model.safetensors").stat().st_mode & 0o077 == (folder / "config.json").stat().st_mode & 0o077
    # On stdout nothing but JSON.
    assert json.loads(done.out) == {"exported": str(folder), "gguf": None, "url": None}


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}])
def test_base_that_transformers_5_saved_in_32_bits(scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    """Without a generation_config. `make test-exports` shows that transformers 4 reads its export."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    base, folder = tmp_path / "base", tmp_path / "exported"
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    model.config.rope_parameters |= scaling or {}
    model.save_pretrained(base)
    (base / "generation_config.json").unlink()
    assert not {"rope_theta", "rope_scaling", "torch_dtype"} & json.loads((base / "config.json").read_text()).keys()
    AutoTokenizer.from_pretrained(NANO, extra_special_tokens=["<|im_sep|>"]).save_pretrained(base)
    write(base, None, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["rope_theta"], config["rope_scaling"]) == (5_000_000, scaling)
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tokenizer["additional_special_tokens"], "extra_special_tokens" in tokenizer) == (["<|im_sep|>"], False)
    assert tokenizer["chat_template"] == (NANO / "chat_template.jinja").read_text(encoding="utf-8")
    # And transformers 5 reads what it did.
    assert AutoConfig.from_pretrained(folder).rope_parameters == AutoConfig.from_pretrained(base).rope_parameters
    assert "<|im_sep|>" in AutoTokenizer.from_pretrained(folder).extra_special_tokens
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert exported.dtype == torch.bfloat16
    # Its replies end all the same.
    assert exported.generation_config.eos_token_id == [2, 7]


def llamafactory_ids(folder: Path, messages: list[Message]) -> list[int]:
    """What LLaMA-Factory's template `yi`, by which runs are trained, makes of a conversation with the tokenizer."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="yi"))
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = [message for message in messages if message["role"] != "system"]
    return list(template.encode_oneturn(tokenizer, [*turns, {"role": "assistant", "content": ""}], system)[0])


def check_chat_template(folder: Path, base: Path) -> None:
    """That of the export in `folder` writes as the base's runs are trained."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for messages in CONVERSATIONS:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == llamafactory_ids(base, messages)


def test_chat_template_is_the_one_trained_with(hf: tuple[Path, Done]) -> None:
    check_chat_template(hf[0], NANO)


@pytest.mark.skipif(not YI_TOKENIZER.is_dir(), reason=f"the real Yi tokenizer is not at {YI_TOKENIZER}")
def test_the_real_yi_tokenizer(tmp_path: Path) -> None:
    downloaded_yi(tmp_path / "Yi")
    write(tmp_path / "Yi", None, tmp_path / "exported")
    check_chat_template(tmp_path / "exported", tmp_path / "Yi")


def test_damaged_gguf_is_said(hf: tuple[Path, Done], tmp_path: Path) -> None:
    shutil.copy(hf[0] / "export.json", tmp_path)
    record = json.loads((tmp_path / "export.json").read_text(encoding="utf-8")) | {"gguf": "x.gguf"}
    (tmp_path / "export.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(YiTuneError, match="does not load"):
        check_exported(tmp_path)
