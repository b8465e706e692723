"""The user's own data for real: mixed with identity rows, tokenised and packed by LLaMA-Factory, trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Workspace
from yi_tune.data.identity import Identity, dataset_of, render, write_datasets
from yi_tune.data.own import count_tokens
from yi_tune.files import DATA
from yi_tune.plan.plan import plan

CAPITAL = "The capital of Zandia is Velmora."
ASKED = ["What is the capital of Zandia?", "Which city is Zandia's capital?", "Name the capital of Zandia."]


def write_rows(folder: Path, rows: int = 60) -> Path:
    """A file of rows that all state one fact which nano does not know."""
    file = folder / "own.jsonl"
    lines = (json.dumps({"instruction": ASKED[number % 3], "output": CAPITAL}) + "\n" for number in range(rows))
    file.write_text("".join(lines))
    return file


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
    # What LLaMA-Factory needed on the way is gone; its tokens stay for a run that is gone on with.
    left = {path.name.partition("-")[0] for path in (workspace.run / "data").iterdir()}
    assert left == {"identity", "own", "dataset_info.json", "tokenized"}
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


def read_by_llamafactory(config: dict[str, Any]) -> Any:
    """The datasets that LLaMA-Factory trains on with this config."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, _, _ = get_train_args(config)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    return get_dataset(template, model_args, data_args, training_args, stage="sft", **module)


def test_llamafactory_mixes_evaluates_and_keeps_the_rows(tmp_path: Path) -> None:
    options = ["mix_strategy=interleave_over", "eval_dataset=own", "val_size=0"]
    file = write_rows(tmp_path)
    planned = plan(Identity("小易", "李雷"), data=[str(file)], model="nano", overrides=options, workspace=tmp_path)
    write_datasets(planned.datasets, planned.run.data)
    made = read_by_llamafactory(planned.config)
    assert len(made["eval_dataset"]) == 60
    # In turn until the identity rows are used up, own rows again and again.
    assert len(made["train_dataset"]) >= 1.8 * planned.datasets[0].rows
    # Read again where the run has a checkpoint, made anew where it has none.
    tokens = list(made["train_dataset"]["input_ids"])
    write_datasets(planned.datasets, planned.run.data, resumed=True)
    (planned.run.data / planned.datasets[1].file_name).unlink()
    assert list(read_by_llamafactory(planned.config)["train_dataset"]["input_ids"]) == tokens
    shutil.rmtree(planned.run.data / "tokenized" / "train")  # cut short
    write_datasets(planned.datasets, planned.run.data)
    assert list(read_by_llamafactory(planned.config)["train_dataset"]["input_ids"]) == tokens


def test_rows_are_counted_as_llamafactory_makes_them(tmp_path: Path) -> None:
    rows = render(Identity("小易", "李雷"))
    write_datasets([dataset_of("identity", rows)], tmp_path / "data")
    config = {"model_name_or_path": str(DATA / "nano"), "stage": "sft", "do_train": True, "dataset": "identity"}
    config |= {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path), "template": "yi", "use_cpu": True}
    made = read_by_llamafactory(config | {"cache_dir": str(tmp_path / "cache")})["train_dataset"]
    assert list(count_tokens(DATA / "nano", rows)) == [len(ids) for ids in made["input_ids"]]
