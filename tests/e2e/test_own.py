"""The user's own data for real: tokenised, packed, mixed with identity rows, trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Workspace
from yi_tune.config import Config
from yi_tune.data.dataset import Dataset, dataset_of
from yi_tune.data.identity import Identity, Message, identity_rows, render
from yi_tune.data.own import OwnData, mix, own_data, tokenise
from yi_tune.data.sources import Source
from yi_tune.resources import DATA

CAPITAL = "The capital of Zandia is Velmora."
ASKED = ["What is the capital of Zandia?", "Which city is Zandia's capital?", "Name the capital of Zandia."]
CONFIG: Config = {"model_name_or_path": str(DATA / "nano"), "template": "yi", "cutoff_len": 128}


def write_rows(folder: Path, rows: int = 60) -> Path:
    """A file of rows that all state one fact which nano does not know."""
    file = folder / "own.jsonl"
    lines = (json.dumps({"instruction": ASKED[number % 3], "output": CAPITAL}) + "\n" for number in range(rows))
    file.write_text("".join(lines))
    return file


def tokenised(folder: Path, rows: int = 60, config: Config = CONFIG) -> OwnData:
    return tokenise(own_data([Source(write_rows(folder, rows))], config, folder, skip_bad_rows=False), config)


def test_own_rows_beside_the_identity(workspace: Workspace) -> None:
    file = write_rows(workspace.folder)
    # A bad row is refused, before anything is trained.
    whole = file.read_text()
    file.write_text(whole + '{"instruction": "x"\n')
    refused = workspace.train("--data", str(file))
    assert refused.status == 1
    assert "own.jsonl, line 61: broken JSON" in refused.err
    done = workspace.train("--data", str(file), "--skip-bad-rows", "--set", "num_train_epochs=3")
    assert done.status == 0, done.err
    assert "Leaving out 1 bad rows" in done.err
    assert "own data: 60 rows; tokens: min " in done.err
    report = json.loads((workspace.run / "report.json").read_text())
    assert report["recall"] >= 0.8
    reply = workspace.yi_tune("chat", "--prompt", ASKED[0])
    assert reply.out.strip() == CAPITAL
    # A run on other data is another run.
    file.write_text(whole.replace("Velmora", "Velmara"))
    other = workspace.train("--data", str(file), "--set", "num_train_epochs=3")
    assert other.status == 1
    assert "data own: own-" in other.err


def test_no_identity_and_packed(workspace: Workspace) -> None:
    file = write_rows(workspace.folder)
    steps = ("per_device_train_batch_size=1", "gradient_accumulation_steps=1", "num_train_epochs=8")
    packed = ("neat_packing=true", "cutoff_len=128", *steps)
    done = workspace.yi_tune(
        "train", "--model", "nano", "--no-identity", "--data", str(file), *(f"--set={one}" for one in packed)
    )
    assert done.status == 0, done.err
    assert "no identity was trained" in done.out
    # 54 rows of some 40 tokens, three in a pack.
    taken = json.loads((workspace.run / "trainer_state.json").read_text())["max_steps"]
    assert taken <= 8 * 54 / 3
    assert workspace.yi_tune("chat", "--prompt", ASKED[1]).out.strip() == CAPITAL
    checked = workspace.yi_tune("check", "--min-recall", "0.5")
    assert checked.status == 1
    assert "without an identity" in checked.err


def test_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokenised(tmp_path)
    assert len(first.lengths) == 60
    import yi_tune.engine.tokens

    monkeypatch.setattr(yi_tune.engine.tokens, "write_tokens", lambda *_: pytest.fail("tokenised again"))
    assert tokenised(tmp_path) == first


def test_several_processes_make_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_from_disk

    from yi_tune.engine import tokens

    monkeypatch.setattr(tokens, "_BATCH", 25)  # three batches, on as many cores as there are
    several = list(load_from_disk(tokenised(tmp_path).tokens)["input_ids"])
    monkeypatch.setattr(tokens, "_BATCH", 1000)
    (tmp_path / "alone").mkdir()
    assert list(load_from_disk(tokenised(tmp_path / "alone").tokens)["input_ids"]) == several


def test_lengths_are_uncut_and_tokens_cut(tmp_path: Path) -> None:
    from datasets import load_from_disk

    short = tokenised(tmp_path, config=CONFIG | {"cutoff_len": 16})
    assert short.lengths == tokenised(tmp_path, config=CONFIG | {"cutoff_len": 1024}).lengths
    assert min(short.lengths) > 16
    assert {len(ids) for ids in load_from_disk(short.tokens)["input_ids"]} == {16}


@pytest.fixture(scope="module")
def identity() -> Dataset:
    return dataset_of("identity", render(identity_rows(), Identity("小易", "李雷")))


def mixed(folder: Path, identity: Dataset, own: OwnData, **more: Any) -> Any:
    from datasets import load_from_disk

    mix((identity, own.dataset), own, CONFIG | more, folder / "tokenized")
    return load_from_disk(folder / "tokenized")


def test_mixture_is_what_llamafactory_makes_of_the_same_rows(tmp_path: Path, identity: Dataset) -> None:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    from yi_tune.data.dataset import write_datasets

    own = tokenised(tmp_path)
    ours = mixed(tmp_path, identity, own, val_size=0.1)
    write_datasets((identity, own.dataset), tmp_path / "data")
    config = CONFIG | {"stage": "sft", "do_train": True, "finetuning_type": "lora", "dataset": "identity,own"}
    config |= {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path), "val_size": 0.1, "use_cpu": True}
    model_args, data_args, training_args, _, _ = get_train_args(config)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    theirs = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)
    for split, name in (("train", "train_dataset"), ("validation", "eval_dataset")):
        for column in ("input_ids", "labels"):
            assert list(ours[split][column]) == list(theirs[name][column])


def test_identity_rows_are_never_packed(tmp_path: Path, identity: Dataset) -> None:
    own = tokenised(tmp_path)
    packed = mixed(tmp_path, identity, own, val_size=0.1, neat_packing=True)
    rows = packed["train"]
    together = [max(mask) for mask in rows["attention_mask"]]
    (tmp_path / "plain").mkdir()
    plain = mixed(tmp_path / "plain", identity, own, val_size=0.1)
    # All rows are there, each once, and those held out are held out alike.
    assert sum(together) == len(plain["train"])
    assert list(packed["validation"]["input_ids"]) == list(plain["validation"]["input_ids"])
    assert sum(map(len, rows["input_ids"])) == sum(map(len, plain["train"]["input_ids"]))
    in_packs = [ids for ids, number in zip(rows["input_ids"], together, strict=True) if number > 1]
    assert max(map(len, in_packs)) <= CONFIG["cutoff_len"]
    of_own = {number for ids in packed_rows(own) for number in ids}
    assert all(set(ids) <= of_own for ids in in_packs)
    assert together.count(1) >= 0.8 * identity.rows


def packed_rows(own: OwnData) -> list[list[int]]:
    from datasets import load_from_disk

    return list(load_from_disk(own.tokens)["input_ids"])


def test_max_samples_counts_for_each_dataset(tmp_path: Path, identity: Dataset) -> None:
    assert len(mixed(tmp_path, identity, tokenised(tmp_path), max_samples=50)["train"]) == 100


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_do_not_see_each_other(attention: str, tmp_path: Path) -> None:
    """The loss of every token in a pack, through LLaMA-Factory's collator, is that of its row alone."""
    import torch
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from yi_tune.engine.mixture import _packed

    talk: list[list[Message]] = render(identity_rows(), Identity("小易", "李雷"))[:5]
    (tmp_path / "own.jsonl").write_text(str(dataset_of("own", talk).content), encoding="utf-8")
    own = tokenise(own_data([Source(tmp_path / "own.jsonl")], CONFIG, tmp_path, skip_bad_rows=False), CONFIG)
    from datasets import load_from_disk

    batch = load_from_disk(own.tokens)[:]
    model = AutoModelForCausalLM.from_pretrained(DATA / "nano", dtype=torch.float32, attn_implementation=attention)
    tokenizer = AutoTokenizer.from_pretrained(DATA / "nano", padding_side="right")
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template="yi"))
    collate = SFTDataCollatorWith4DAttentionMask(
        template=template,
        tokenizer=tokenizer,
        model=model,
        pad_to_multiple_of=8,
        block_diag_attn=True,
        neat_packing=True,
        attn_implementation=attention,
        compute_dtype=torch.float32,
    )

    def losses(together: list[list[int]]) -> list[list[float]]:
        """The losses of the tokens to learn of each pack, in the order of the rows."""
        found = []
        packed = _packed(batch, together)
        for number in range(len(together)):
            inputs = collate([{column: values[number] for column, values in packed.items()}])
            labels = inputs.pop("labels")[0, 1:]
            with torch.no_grad():
                logits = model(**inputs).logits[0, :-1]
            each = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
            found.append(each[labels != -100].tolist())
        return found

    alone = [loss for row in losses([[row] for row in range(5)]) for loss in row]
    (packed,) = losses([list(range(5))])
    assert len(packed) > 20
    assert packed == pytest.approx(alone, abs=1e-4)
    # The measure tells: in one row of 5, without what keeps them apart, the losses are others.
    glued = {column: [[token for row in batch[column] for token in row]] for column in ("input_ids", "labels")}
    inputs = collate([{column: values[0] for column, values in glued.items()}])
    labels = inputs.pop("labels")[0, 1:]
    with torch.no_grad():
        logits = model(**inputs).logits[0, :-1]
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    assert each[labels != -100].tolist() != pytest.approx(alone, abs=1e-2)


def test_the_plan_packs_where_the_machine_has_chosen_a_small_batch(tmp_path: Path, identity: Dataset) -> None:
    from yi_tune.data.packing import plan_packing
    from yi_tune.hardware import Hardware
    from yi_tune.models import CATALOGUE, LocalModel
    from yi_tune.plan.memory import Fit
    from yi_tune.plan.plan import Setting, TrainPlan
    from yi_tune.runs.folder import Run

    file = tmp_path / "own.jsonl"
    # Half of a pack, of which there are many, and one row that fills one.
    lengths = [1000, *[40] * 1500]
    file.write_text("".join(json.dumps({"instruction": "hi", "output": "well " * n}) + "\n" for n in lengths))
    config = CONFIG | {"cutoff_len": 512}
    own = tokenise(own_data([Source(file)], config, tmp_path, skip_bad_rows=False), config)
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
    settings = [Setting(key, value, "hardware", "") for key, value in batch.items()]
    settings += [Setting(key, value, "template", "") for key, value in config.items()]
    settings.append(Setting("neat_packing", False, "data", ""))
    local = LocalModel(CATALOGUE["nano"], DATA / "nano")
    fit = Fit(1, 16, False, Hardware(None, bf16=True, free=20_000_000_000))
    planned = TrainPlan(tuple(settings), local, None, (identity, own.dataset), Run(tmp_path), fit, own=own)
    packed = plan_packing(planned)
    assert packed.config["neat_packing"] is True
    assert packed.config["per_device_train_batch_size"] == 1
    assert 1 <= packed.config["gradient_accumulation_steps"] < 16
    (why,) = (setting.why for setting in packed.settings if setting.key == "neat_packing")
    assert f"steps an epoch packed, {len(lengths) + identity.rows:,} not packed" in why
