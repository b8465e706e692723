"""LLaMA-Factory's own parser reads every shipped config, filled in as a run fills it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yi_tune.config import Config, dump_config, find_config, read_config, reasons, shipped
from yi_tune.data.dataset import Dataset
from yi_tune.data.identity import Identity
from yi_tune.hardware import Hardware
from yi_tune.models import CATALOGUE, LocalModel
from yi_tune.plan.memory import Fit
from yi_tune.plan.plan import TrainPlan, plan_train
from yi_tune.plan.problems import problems
from yi_tune.runs.folder import Run

CPU = Hardware(None, bf16=True, free=20_000_000_000)
# What the parser makes of each config, as JSON; its own talk stays on stderr.
PARSE = """
import contextlib, json, sys
import yaml
with contextlib.redirect_stdout(sys.stderr):
    from llamafactory.hparams import get_infer_args, get_train_args
    from omegaconf import OmegaConf
    from yi_tune.engine.arguments import choices, known_keys
    parsed = {}
    for name in sys.argv[1:]:
        args = OmegaConf.to_container(OmegaConf.load(name))
        try:
            groups = (get_train_args if args.get("do_train") else get_infer_args)(args)
        except ValueError as error:
            parsed[name] = {"refused": str(error)}
        else:
            parsed[name] = {key: value for group in groups for key, value in vars(group).items()}
    known = {key: [kind.__name__ for kind in kinds] for key, kinds in known_keys().items()}
print(json.dumps({"known": known, "choices": choices(), "parsed": parsed}, default=str))
"""
TRAINING = [name for name, path in shipped().items() if path.parent.name == "train"]
TYPES = {"bool": bool, "int": int, "float": float, "str": str, "NoneType": type(None)}


def plan(name: str, folder: Path, overrides: Config) -> TrainPlan:
    """The plan for a shipped config on a CPU."""
    path = find_config(name)
    return plan_train(
        read_config(path),
        reasons(path),
        overrides,
        local=LocalModel(CATALOGUE["nano"], folder / "nano"),
        identity=Identity("小易", "李雷"),
        datasets=(Dataset("identity", 10, ""),),
        fit=Fit(8, 1, False, CPU),
        run=Run(folder / "saves" / "nano" / "identity"),
    )


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Each shipped config, filled in."""
    folder = tmp_path_factory.mktemp("a folder")
    filled = {name: plan(name, folder, {}).config for name in TRAINING}
    for name in TRAINING:
        filled[f"chat {name}"] = plan(name, folder, {}).chat_config(read_config(find_config("chat")))
    # What the error of problems() advises for a run without validation.
    filled["no eval"] = plan("qlora", folder, {"val_size": 0.0, "eval_strategy": "no"}).config
    return filled


@pytest.fixture(scope="module")
def engine(configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What LLaMA-Factory makes of each file, and the keys it knows."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(dump_config(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *(f"{name}.yaml" for name in configs)],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("name", [*TRAINING, *(f"chat {name}" for name in TRAINING), "no eval"])
def test_llamafactory_takes_it_as_it_is_meant(name: str, configs: dict[str, Config], engine: dict[str, Any]) -> None:
    parsed = engine["parsed"][f"{name}.yaml"]
    assert "refused" not in parsed, parsed
    # The parser splits lists, sets its own devices, and turns names into members of an enum.
    own = {"dataset", "lora_target", "adapter_name_or_path", "eval_strategy", "lr_scheduler_type", "infer_dtype"}
    for key, value in configs[name].items():
        if key not in own:
            assert parsed[key] == value, key
        else:
            assert str(value) in str(parsed[key]).lower(), key


def test_known_keys_cover_the_shipped_files(configs: dict[str, Config], engine: dict[str, Any]) -> None:
    for config in configs.values():
        assert config.keys() <= engine["known"].keys()


def test_words(engine: dict[str, Any]) -> None:
    words = engine["choices"]
    assert words["eval_strategy"] == ["no", "steps", "epoch"]
    assert {"cosine", "linear", "constant_with_warmup"} < set(words["lr_scheduler_type"])
    assert {"adamw_torch", "paged_adamw_8bit"} < set(words["optim"])
    assert words["finetuning_type"] == ["lora", "oft", "freeze", "full"]
    assert "report_to" not in words
    assert "learning_rate" not in words


def test_known_types(engine: dict[str, Any]) -> None:
    known = engine["known"]
    assert known["learning_rate"] == ["float"]
    assert known["fp16"] == ["bool"]
    assert set(known["quantization_bit"]) == {"int", "NoneType"}
    assert known["lora_target"] == ["str"]
    assert known["report_to"] == []
    # What LLaMA-Factory computes for itself is no key of a config.
    assert "compute_dtype" not in known


@pytest.mark.parametrize("name", [*TRAINING, "no eval"])
def test_nothing_is_wrong_with_shipped_configs(name: str, configs: dict[str, Config], engine: dict[str, Any]) -> None:
    known = {key: tuple(TYPES[kind] for kind in kinds) for key, kinds in engine["known"].items()}
    assert problems(configs[name], known, engine["choices"]) == []
    assert (
        len(problems(configs[name] | {"learning_rate": "1e-3", "learning_rat": 1, "plot_loss": "yes"}, known, {})) == 3
    )
