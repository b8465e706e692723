from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from yi_tune.config import (
    dump_config,
    find_config,
    parse_config,
    parse_overrides,
    read_config,
    reasons,
    shipped,
)
from yi_tune.errors import YiTuneError
from yi_tune.files import CONFIGS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3", 3),
        ("-1", -1),
        ("true", True),
        ("null", None),
        ("", None),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("a=b=c", "a=b=c"),
        ("1.2.3", "1.2.3"),
        # Words and dates are text, whatever YAML 1.1 makes of them.
        ("no", "no"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("'1e-3'", "1e-3"),
        ("你好 🚀", "你好 🚀"),
        ("${model_path}", "${model_path}"),
    ],
)
def test_overrides_are_typed_as_yaml(text: str, value: Any) -> None:
    typed = parse_overrides([f"key={text}"])["key"]
    assert typed == value
    assert type(typed) is type(value)


def test_overrides_in_order_the_last_one_wins_and_spaces_around_the_key_do_not_matter() -> None:
    assert parse_overrides(["a=1", " b =2", "a=3"]) == {"a": 3, "b": 2}


@pytest.mark.parametrize("assignment", ["learning_rate", "=3", "  =3", ""])
def test_override_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(YiTuneError, match="is not key=value") as caught:
        parse_overrides([assignment])
    assert "--set num_train_epochs=5" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("stage: sft\nlearning_rate: : 3\n", 2),
        ("stage: sft\n\nlora_target: [q_proj\nbf16: true\n", 4),
        ("# a comment\nstage: 'sft\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: !!python/object:os.system x\n", 1),
        ("stage: sft\nbf16: true\nstage: pt\n", 3),
    ],
)
def test_broken_yaml_is_reported_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(YiTuneError, match=rf"mine\.yaml is not YAML, line {line}, column \d+: "):
        read_config(file)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text", "1: one\n", "a: 1\nnull: 2\n"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(YiTuneError, match="is not a mapping") as caught:
        parse_config(text, "mine.yaml")
    assert "key: value" in caught.value.hint


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(YiTuneError, match="cannot be read") as caught:
            read_config(path)
        assert str(path) in caught.value.message
        with pytest.raises(YiTuneError, match="cannot be read"):
            reasons(path)


def test_find_config_by_name_and_by_path(tmp_path: Path) -> None:
    assert find_config("qlora") == CONFIGS / "train" / "qlora.yaml"
    assert find_config("chat") == CONFIGS / "chat.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text("a: 1")
    assert find_config("mine.yaml").samefile(mine)
    assert find_config(str(mine)) == mine
    # A shipped one comes before a file of its name.
    (tmp_path / "qlora").write_text("a: 1")
    assert find_config("qlora") == CONFIGS / "train" / "qlora.yaml"
    assert find_config("./qlora").samefile(tmp_path / "qlora")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qlorra", "Did you mean qlora?"),
        ("zzzzzz", "Known: chat, lora, qlora, qlora-8bit, tutorial."),
        ("none/mine.yaml", "Known: "),
    ],
)
def test_unknown_config(name: str, hint: str) -> None:
    with pytest.raises(YiTuneError, match="No config is called") as caught:
        find_config(name)
    assert repr(name) in caught.value.message
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    "text",
    [
        *("a: b", "a\nb: c", "# no comment", "- x", "'\"", "{x: 1}", "*a", "!!str", r"\1 \g<0>", "很长 " * 99),
        *("", "~", "null", "true", "3", "-1", "010", "0x1F", "1e-3", "1.", ".5", ".inf", ".nan", "${other}"),
        # Words, numbers and dates of YAML 1.1, by whose rules LLaMA-Factory reads the run's train.yaml.
        *("no", "No", "off", "on", "yes", "1_000", "1:30", "0b11", "=", "2026-01-01"),
    ],
)
def test_text_is_dumped_as_text(text: str) -> None:
    config = {"b": text, "a": [text]}
    assert parse_config(dump_config(config), "here") == config
    assert OmegaConf.to_container(OmegaConf.create(dump_config(config))) == config


def test_dumped_config_keeps_order_and_types() -> None:
    config = {"z": "路径", "a": 1e-5, "m": None, "b": True, "l": ["x", 1]}
    assert dump_config(config) == "z: 路径\na: 1.0e-05\nm: null\nb: true\nl:\n- x\n- 1\n"


def test_reasons_are_the_comments_behind_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# head: # not\na: 1  # why a\n### part\nb: ${x}\n  # c: 3  # not\nd: x#y\ne: [1, 2] # why # e\n")
    assert reasons(file) == {"a": "why a", "e": "why # e"}


@pytest.mark.parametrize("path", shipped().values(), ids=shipped())
def test_shipped_config_explains_itself(path: Path) -> None:
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line)
    assert comments[0].startswith("# ")
    assert any("yi-tune " in line for line in comments), "it opens with the command that uses it"
    assert read_config(path)


def test_qlora_departs_from_the_tutorial_only_with_a_reason() -> None:
    tutorial, qlora = read_config(find_config("tutorial")), read_config(find_config("qlora"))
    departures = {key for key in tutorial | qlora if (key in tutorial, tutorial.get(key)) != (True, qlora.get(key))}
    assert departures == reasons(find_config("qlora")).keys()
    assert not tutorial.keys() - qlora.keys()


@pytest.mark.parametrize(("name", "without"), [("lora", {"quantization_bit"}), ("qlora-8bit", set())])
def test_profile_departs_from_qlora_only_as_it_says(name: str, without: set[str]) -> None:
    qlora, profile = read_config(find_config("qlora")), read_config(find_config(name))
    changed = {key for key in profile if profile[key] != qlora.get(key)}
    assert changed == reasons(find_config(name)).keys()
    assert qlora.keys() - profile.keys() == without
    head = find_config(name).read_text(encoding="utf-8").split("\n\n")[0]
    assert f"--config {name} " in head
    assert all(key in head for key in without)
