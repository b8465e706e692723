"""The user's own data for real: mixed with identity rows, tokenised and packed by LLaMA-Factory, trained on."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.e2e.conftest import Workspace
from yi_tune.data.identity import Identity, dataset_of, render, write_datasets
from yi_tune.data.own import count_tokens, prepare_own
from yi_tune.files import DATA
from yi_tune.plan.plan import plan

CAPITAL = "The capital of Zandia is Velmora."
ASKED = ["What is the capital of Zandia?", "Which city is Zandia's capital?", "Name the capital of Zandia."]


NANO = {"model_name_or_path": str(DATA / "nano"), "stage": "sft", "do_train": True, "template": "yi", "use_cpu": True}


def write_rows(folder: Path, rows: int = 60) -> Path:
    """A file of rows that all state one fact which nano does not know."""
    file = folder / "own.jsonl"
    lines = (json.dumps({"instruction": ASKED[number % 3], "output": CAPITAL}) + "\n" for number in range(rows))
    file.write_text("".join(lines))
    return file


def test_own_rows_beside_the_identity(workspace: Workspace) -> None:
    file = write_rows(workspace.folder)
    file.write_text(file.read_text() + '{"instruction": "x"\n')
    done = workspace.train("--data", str(file), "--skip-bad-rows", "--set", "num_train_epochs=2")
    assert done.status == 0, done.err
    assert "Leaving out 1 bad rows" in done.err
    assert "own.jsonl, line 61: broken JSON" in done.err
    assert "own data: 60 rows; tokens: min " in done.err
    report = json.loads((workspace.run / "report.json").read_text())
    assert report["recall"] >= 0.8
    reply = workspace.yi_tune("chat", "--prompt", ASKED[0])
    assert reply.out.strip() == CAPITAL
    # What LLaMA-Factory needed on the way is gone; its tokens stay for a run that is gone on with.
    left = {path.name.partition("-")[0] for path in (workspace.run / "data").iterdir()}
    assert left == {"identity", "own", "dataset_info.json", "tokenized"}


def test_no_identity_and_packed(workspace: Workspace) -> None:
    file = write_rows(workspace.folder)
    steps = ("per_device_train_batch_size=1", "gradient_accumulation_steps=1", "num_train_epochs=6")
    packed = ("neat_packing=true", "cutoff_len=128", *steps)
    done = workspace.yi_tune(
        "train", "--model", "nano", "--no-identity", "--data", str(file), *(f"--set={one}" for one in packed)
    )
    assert done.status == 0, done.err
    assert "no identity was trained" in done.out
    # 54 rows of some 40 tokens, three in a pack.
    taken = json.loads((workspace.run / "trainer_state.json").read_text())["max_steps"]
    assert taken <= 6 * 54 / 3
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


def made_by_llamafactory(dataset: str, folder: Path) -> Any:
    """The rows that it makes of a dataset in a folder with a dataset_info.json."""
    paths = {"dataset_dir": str(folder), "output_dir": str(folder), "cache_dir": str(folder / "cache")}
    return read_by_llamafactory({"dataset": dataset, **paths, **NANO})["train_dataset"]


def decoded(ids: list[int]) -> str:
    return AutoTokenizer.from_pretrained(DATA / "nano").decode(ids)


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


def test_tokens_are_counted_as_llamafactory_makes_them(tmp_path: Path) -> None:
    rows = render(Identity("小易", "李雷"))
    write_datasets([dataset_of("identity", rows)], tmp_path / "data")
    made = made_by_llamafactory("identity", tmp_path / "data")
    assert list(count_tokens(DATA / "nano", rows)) == [len(ids) for ids in made["input_ids"]]
    targets = [sum(label >= 0 for label in labels) for labels in made["labels"]]
    assert list(count_tokens(DATA / "nano", rows, targets_only=True)) == targets


TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TOLD = [{"who": "sys", "says": "s"}, {"who": "me", "says": "q"}, {"who": "bot", "says": "a"}]
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROLES = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
WHO = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "bot", "system_tag": "sys"}
ALPACA = {"instruction": "q", "input": "x", "output": "a", "system": "s", "history": [["p", "b"]]}
COLUMNS = ("prompt", "query", "response", "system", "history")
PAIR = {"question": "q", "context": None, "answer": "a", "input": "not listed"}
ENTRIES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "alpaca": ({}, [ALPACA, {**ALPACA, "input": ""}, {**ALPACA, "input": None}]),
    "all columns": ({"columns": dict(zip(COLUMNS, ALPACA, strict=True))}, [ALPACA]),
    "no query": ({"columns": {"prompt": "input", "response": "output"}}, [ALPACA]),
    "null query": ({"columns": {"prompt": "question", "query": None, "response": "answer"}}, [PAIR]),
    "empty query": ({"columns": {"prompt": "question", "query": "context", "response": "answer"}}, [PAIR]),
    "query alone": ({"columns": {"query": "question", "response": "answer"}}, [PAIR]),
    "sharegpt": ({"formatting": "sharegpt"}, [{"conversations": TALK * 2, "system": "not listed"}]),
    "system column": (
        {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}},
        [{"conversations": TALK, "system": "s"}, {"conversations": TALK, "system": None}],
    ),
    "both systems": (
        {"formatting": "sharegpt", "columns": {"messages": "talk", "system": "system"}, "tags": WHO},
        [{"talk": TOLD, "system": "of the column"}],
    ),
    "tags": ({"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": WHO}, [{"talk": TOLD, "id": 3}]),
    "openai": (
        {"formatting": "openai", "columns": {"messages": "messages"}, "tags": {**ROLES, "system_tag": "system"}},
        [{"messages": MESSAGES}, {"messages": MESSAGES[1:]}],
    ),
    "sample": ({"num_samples": 2}, [ALPACA, ALPACA, ALPACA]),
    "more than there are": ({"num_samples": 5}, [ALPACA, ALPACA]),
    "folder": ({"file_name": "rows"}, [ALPACA, ALPACA]),
}


def test_rows_of_entries_are_those_that_llamafactory_makes_of_them(tmp_path: Path) -> None:
    info = {name: {"file_name": f"{name}.json", **entry} for name, (entry, _) in ENTRIES.items()}
    theirs = tmp_path / "theirs"
    (theirs / "rows").mkdir(parents=True)
    (theirs / "rows" / "a.json").write_text(json.dumps(ENTRIES["folder"][1]))
    (theirs / "dataset_info.json").write_text(json.dumps(info))
    for name, (_, rows) in ENTRIES.items():
        (theirs / f"{name}.json").write_text(json.dumps(rows))
    own, _ = prepare_own(list(ENTRIES), theirs, NANO, skip_bad_rows=False)
    write_datasets([own], tmp_path / "own")
    made = [decoded(ids) for ids in made_by_llamafactory(",".join(ENTRIES), theirs)["input_ids"]]
    # Which LLaMA-Factory adds to the system prompt of OpenAI's messages, for another model than Yi.
    extra = r"\ndetailed thinking off|<\|im_start\|>system\ndetailed thinking off<\|im_end\|>\n"
    ours = [decoded(ids) for ids in made_by_llamafactory("own", tmp_path / "own")["input_ids"]]
    assert ours == [re.sub(extra, "", text) for text in made]


def test_answers_of_weight_0_are_read_and_not_learned(tmp_path: Path) -> None:
    contents = ["你是谁？", "我是 Yi。", "Really?\n", "No: I am 小易.", "1+1=?", "2"]
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": text, "weight": int(index == 3)}
        for index, text in enumerate(contents)
    ]
    for name, row in (("marked", messages), ("plain", [{**one, "weight": None} for one in messages[:4]])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": row}))
        own, _ = prepare_own([str(tmp_path / f"{name}.jsonl")], None, NANO, skip_bad_rows=False)
        write_datasets([own], tmp_path / name)

    (marked,), (plain,) = (made_by_llamafactory("own", tmp_path / name) for name in ("marked", "plain"))
    assert marked["input_ids"] == plain["input_ids"]
    assert decoded([token for token in marked["labels"] if token >= 0]) == "No: I am 小易.<|im_end|>\n"
