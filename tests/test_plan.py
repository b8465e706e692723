import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.plans import CPU, plan
from yi_tune.config import Config, find_config, read_config
from yi_tune.data.identity import Identity, ambiguous, render
from yi_tune.errors import YiTuneError
from yi_tune.files import DATA
from yi_tune.hardware import Hardware
from yi_tune.language import told
from yi_tune.models import CATALOGUE, Model
from yi_tune.plan.checks import trackers, unfit_validation
from yi_tune.plan.fit import Fit, choose_fit
from yi_tune.plan.plan import EARLY_STOP
from yi_tune.plan.plan import plan as decide
from yi_tune.plan.settings import TrainPlan
from yi_tune.runs import Run, Start

OLD_CPU = Hardware(None, bf16=False, free=20_000_000_000)
H200 = Hardware("NVIDIA H200", bf16=True, free=140_000_000_000)
T4 = Hardware("Tesla T4", bf16=False, free=15_000_000_000)
RUN = Run(Path("/ws/saves/m/identity"))
MICRO = "per_device_train_batch_size"


def provenance(planned: TrainPlan, key: str) -> tuple[Any, str, str]:
    value, source, why = planned.settings[key]
    return value, source, told(why)


def test_every_value_knows_where_it_came_from() -> None:
    planned = plan(overrides={"lora_rank": 16})
    assert provenance(planned, "model_name_or_path") == ("/models/m", "model", "where nano lies")
    assert provenance(planned, "dataset_dir") == (str(RUN.data), "data", "398 rows of identity")
    assert provenance(planned, "output_dir") == (str(RUN.folder), "run", "the run folder")
    assert provenance(planned, "learning_rate") == (2.5e-3, "model", "nano's own")
    assert provenance(planned, "num_train_epochs") == (CATALOGUE["nano"].num_train_epochs, "model", "nano's own")
    assert provenance(planned, MICRO) == (8, "hardware", "the model's shape is not known")
    assert provenance(planned, "bf16") == (True, "hardware", "the CPU has bf16")
    assert provenance(planned, "fp16") == (False, "hardware", "the CPU has bf16")
    assert provenance(planned, "use_cpu") == (True, "hardware", "training is on the CPU")
    assert provenance(planned, "lora_rank") == (16, "flag", "--set")
    assert provenance(planned, "cutoff_len") == (1024, "template", "")
    value, source, why = provenance(planned, "save_steps")
    assert (value, source) == (0.25, "template")
    assert "500" in why


@pytest.mark.parametrize("hardware", [CPU, H200, T4], ids=lambda hardware: hardware.device)
@pytest.mark.parametrize("model", [CATALOGUE["nano"], CATALOGUE["yi-1.5-6b-chat"]], ids=lambda model: model.name)
def test_tutorial_is_unaltered_on_any_machine(hardware: Hardware, model: Model) -> None:
    planned = plan("tutorial", hardware=hardware, model=model)
    assert planned.config == read_config(find_config("tutorial")) | {
        "model_name_or_path": "/models/m",
        "dataset_dir": str(RUN.data),
        "output_dir": str(RUN.folder),
    }


@pytest.mark.parametrize(
    ("hardware", "bf16", "fp16", "use_cpu"),
    [(CPU, True, False, True), (OLD_CPU, False, False, True), (H200, True, False, False), (T4, False, True, False)],
)
def test_precision_is_the_machines(hardware: Hardware, bf16: bool, fp16: bool, use_cpu: bool) -> None:
    config = plan(hardware=hardware).config
    assert (config["bf16"], config["fp16"], config["use_cpu"]) == (bf16, fp16, use_cpu)


def test_steps_are_divided_as_they_fit() -> None:
    planned = plan(fit=Fit(2, 4, True, T4))
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size")
    assert [planned.config[key] for key in keys] == [2, 4, 2]
    assert planned.config["disable_gradient_checkpointing"] is False
    assert {provenance(planned, key)[1] for key in (*keys, "disable_gradient_checkpointing")} == {"hardware"}
    # A user's micro-batch stands; the machine's accumulation goes with it.
    assert plan(overrides={keys[0]: 4}, fit=Fit(4, 2, False, T4)).config[keys[1]] == 2


def test_what_yi_tune_decides_cannot_be_set() -> None:
    with pytest.raises(YiTuneError, match="itself decides dataset, resume_from_checkpoint: ") as caught:
        plan(overrides={"dataset": "x", "cutoff_len": 1, "resume_from_checkpoint": "x"})
    assert "--data" in caught.value.hint


def test_paths_of_a_config_written_for_llamafactory_are_replaced() -> None:
    planned = plan({"model_name_or_path": "01-ai/Yi-1.5-6B-Chat", "output_dir": "saves/old", "learning_rate": 5e-5})
    assert planned.config == {
        "model_name_or_path": "/models/m",
        "output_dir": str(RUN.folder),
        "learning_rate": 5e-5,
        "dataset_dir": str(RUN.data),
        "dataset": "identity",
    }
    assert provenance(planned, "learning_rate") == (5e-5, "template", "")
    assert provenance(planned, "model_name_or_path")[1] == "model"


NAME = Identity("小易", "李雷")


def write_config(folder: Path, **changes: Any) -> str:
    """A file with the tutorial's config and these changes."""
    config = read_config(find_config("tutorial")) | changes
    (folder / "mine.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items()))
    return str(folder / "mine.yaml")


def test_model_that_a_config_names_is_used_and_its_paths_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, model_name_or_path=str(DATA / "nano"), output_dir="saves/old")
    planned = decide(NAME, workspace=tmp_path, config=config)
    assert planned.local.path == DATA / "nano"
    assert f"Not used of {config}: output_dir. The options decide that." in capsys.readouterr().err
    shutil.copytree(DATA / "nano", tmp_path / "copy")
    assert decide(NAME, workspace=tmp_path, config=config, model=str(tmp_path / "copy")).local.path == tmp_path / "copy"
    assert f"Not used of {config}: output_dir, model_name_or_path." in capsys.readouterr().err
    decide(NAME, workspace=tmp_path, model="nano")
    assert "Not used" not in capsys.readouterr().err


def test_unknown_model_and_a_resume_that_a_config_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="Unknown model 'nanno'"):
        decide(NAME, workspace=tmp_path, config=write_config(tmp_path, model_name_or_path="nanno"))
    with pytest.raises(YiTuneError, match="itself decides resume_from_checkpoint"):
        decide(NAME, workspace=tmp_path, model="nano", config=write_config(tmp_path, resume_from_checkpoint="x"))


def test_max_samples_draws_from_both_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = decide(NAME, workspace=tmp_path, model="nano", overrides=["max_samples=100"])
    assert planned.datasets[0].rows == 100
    rows = list(planned.datasets[0].conversations())
    everything = render(NAME)
    chinese = [row for row in rows if re.search("[一-鿿]", row[0]["content"])]
    assert 30 <= len(chinese) <= 70
    assert all(row in everything for row in rows)
    assert f"max_samples: 100 of the {len(everything)} identity rows" in capsys.readouterr().err
    again = decide(NAME, workspace=tmp_path, model="nano", overrides=["max_samples=100"])
    assert again.datasets[0].file_name == planned.datasets[0].file_name


def test_name_that_is_an_ordinary_word_gets_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decide(Identity("北京", "Grace", "A"), workspace=tmp_path, model="nano")
    assert "Note: a reply may hold 北京, A as an ordinary word" in capsys.readouterr().err
    for name in ("小易", "Yi", "Ada"):
        assert ambiguous(Identity(name, "Li Lei")) == []


def test_eval_data_takes_the_place_of_held_out_rows(tmp_path: Path) -> None:
    for name in ("rows", "other"):
        lines = (json.dumps({"instruction": f"{name} {n}", "output": "a"}) + "\n" for n in range(30))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    planned = decide(
        NAME,
        workspace=tmp_path,
        model="nano",
        data=[str(tmp_path / "rows.jsonl")],
        eval_data=[str(tmp_path / "other.jsonl:9")],
    )
    config = planned.config
    assert (config["dataset"], config["eval_dataset"], config["val_size"]) == ("identity,own", "eval", 0)
    assert [(dataset.name, dataset.rows) for dataset in planned.datasets[1:]] == [("own", 30), ("eval", 9)]
    with pytest.raises(YiTuneError, match="leaves nothing to train on"):
        decide(None, workspace=tmp_path, model="nano", eval_data=[str(tmp_path / "other.jsonl")])
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(YiTuneError, match="no row in --eval-data"):
        decide(NAME, workspace=tmp_path, model="nano", eval_data=[str(tmp_path / "none.jsonl")])


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?"])
def test_workspace_that_datasets_cannot_read_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(YiTuneError, match="takes for a pattern") as caught:
        decide(NAME, workspace=tmp_path / name, model="nano")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("hardware", "overrides", "added"),
    [
        (CPU, {}, {"quantization_bit": 4, "infer_dtype": "bfloat16"}),
        (T4, {}, {"quantization_bit": 4, "infer_dtype": "float16"}),
        (H200, {"quantization_bit": 8}, {"quantization_bit": 8, "infer_dtype": "bfloat16"}),
        (H200, {"quantization_bit": None}, {"infer_dtype": "bfloat16"}),
        (OLD_CPU, {}, {"quantization_bit": 4, "infer_dtype": "float32"}),
        (OLD_CPU, {"quantization_bit": None}, {"infer_dtype": "float32"}),
    ],
)
def test_chat_config_loads_what_was_trained(hardware: Hardware, overrides: Config, added: Config) -> None:
    assert plan(overrides=overrides, hardware=hardware).chat_config == {
        "model_name_or_path": "/models/m",
        "adapter_name_or_path": str(RUN.folder),
        "template": "yi",
        "finetuning_type": "lora",
        **added,
    }


def test_chat_config_quantises_only_what_memory_does_not_hold() -> None:
    for free, bits in ((10, 4), (24, None)):
        fit = choose_fit(CATALOGUE["yi-1.5-6b-chat"].shape, {}, [72], replace(T4, free=free * 10**9))
        assert plan(fit=fit).config["quantization_bit"] == 4
        assert plan(fit=fit).chat_config.get("quantization_bit") == bits


START = Start(
    "first",
    Path("/ws/saves/m/first"),
    "0" * 64,
    {"lora_rank": 16, "use_rslora": True, "lora_target": "all", "additional_target": None},
)


def test_start_is_where_the_adapter_lies_and_keeps_its_shape() -> None:
    planned = plan(start=START)
    assert provenance(planned, "adapter_name_or_path") == (
        "/ws/saves/m/first",
        "run",
        "the adapter of the run first",
    )
    assert provenance(planned, "lora_rank") == (16, "run", "the adapter of the run first has it")
    assert planned.config["use_rslora"] is True
    assert "additional_target" not in planned.config
    assert plan(start=START, overrides={"lora_rank": 16}).config["lora_rank"] == 16
    # It is trained further, and the run keeps its own.
    assert planned.chat_config["adapter_name_or_path"] == str(RUN.folder)
    assert "adapter_name_or_path" not in plan().config


def test_another_shape_than_the_adapters_is_refused() -> None:
    with pytest.raises(YiTuneError) as caught:
        plan({"lora_rank": 16, "use_rslora": False}, {"lora_rank": 8, "additional_target": "embed_tokens"}, start=START)
    for clash in ("lora_rank=16", "use_rslora=True", "additional_target=None"):
        assert clash in caught.value.message
    assert "lora_target" not in caught.value.message


def test_adapter_that_a_config_names_itself_is_refused() -> None:
    config = {"adapter_name_or_path": "saves/old", "learning_rate": 5e-5}
    with pytest.raises(YiTuneError, match="itself decides adapter_name_or_path: ") as caught:
        plan(config)
    assert "--from-run" in caught.value.hint
    assert plan(config, start=START).config["adapter_name_or_path"] == str(START.folder)


def test_flag_wins_over_template_model_hardware_and_options() -> None:
    options: dict[str, Config] = {"--early-stop": EARLY_STOP, "--report-to": {"run_name": "a"}}
    flags = {"cutoff_len": 256, "learning_rate": 1e-5, "bf16": False, "eval_steps": 0.2}
    planned = plan(overrides=flags, options=options)
    assert {key: provenance(planned, key) for key in flags} == {key: (flags[key], "flag", "--set") for key in flags}
    assert provenance(planned, "save_steps") == (0.05, "flag", "--early-stop")
    assert provenance(planned, "run_name") == ("a", "flag", "--report-to")


def test_early_stop_is_accepted_with_the_shipped_configs() -> None:
    for template in ("qlora", "tutorial"):
        assert not list(
            unfit_validation(plan(template, options={"--early-stop": EARLY_STOP}).config, {"identity": 398})
        )


def test_trackers() -> None:
    assert trackers([], "nano/a") == {}
    both = {"report_to": ["tensorboard", "wandb"], "run_name": "nano/a"}
    assert trackers(["tensorboard", "wandb"], "nano/a") == both
    assert trackers(["swanlab"], "nano/a") == {"use_swanlab": True, "swanlab_run_name": "nano/a"}
