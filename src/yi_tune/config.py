"""LLaMA-Factory configs as templates: YAML, a value of which may be a placeholder (`${learning_rate}`)."""

import re
from gettext import gettext as _
from pathlib import Path
from typing import Any

import yaml

from yi_tune.errors import YiTuneError, did_you_mean
from yi_tune.files import CONFIGS

Config = dict[str, Any]

_COMMENT = re.compile(r"^(\w+):[^#\n]*\s# (.+)$", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2's core schema, in which `1e-3` is a number and `no` is a word; no key may stand there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for at, (key, _node) in enumerate(node.value):
            if key.value in keys[:at]:  # PyYAML itself would take the last one, silently
                raise yaml.MarkedYAMLError(
                    problem=_("the key {key!r} is there twice").format(key=key.value), problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever _Loader, or LLaMA-Factory's own YAML 1.1, would read as something else than a string."""


# YAML 1.2, section 10.3.2. PyYAML's own are YAML 1.1's: `1e-3` a string, `eval_strategy: no` false.
_CORE_SCHEMA = [
    ("null", r"^(null|Null|NULL|~|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^([-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", list("-+0123456789.")),
]
_Loader.yaml_implicit_resolvers = {}
for _flavour in (_Loader, _Dumper):
    for _tag, _pattern, _first in _CORE_SCHEMA:
        _flavour.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def shipped() -> dict[str, Path]:
    """Every shipped config by name: `chat` and the training templates."""
    return {file.stem: file for file in sorted(CONFIGS.rglob("*.yaml"), key=lambda file: file.stem)}


def find_config(name: str) -> Path:
    """The config called `name`, or the file of that path. Raises YiTuneError when there is neither."""
    path = shipped().get(name, Path(name))
    if path.is_file():
        return path
    raise YiTuneError(
        _("No config is called {name!r}, and no such file exists.").format(name=name),
        did_you_mean(name, list(shipped())),
    )


def parse_config(text: str, origin: str) -> Config:
    """The mapping in `text`; raises YiTuneError with the line when it does not parse."""
    try:
        config = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        said = _("{origin} is not YAML: {problem}.").format(origin=origin, problem=problem)
        if mark:
            said = _("{origin} is not YAML, line {line}, column {column}: {problem}.").format(
                origin=origin, line=mark.line + 1, column=mark.column + 1, problem=problem
            )
        raise YiTuneError(said, "Mend it there.") from None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise YiTuneError(
            "{origin} is not a mapping of keys to values.", "Write one `key: value` a line.", origin=origin
        )
    return config


def read_config(path: Path) -> Config:
    """The mapping in the file `path`; raises YiTuneError when it cannot be read or does not parse."""
    return parse_config(read_text(path), str(path))


def reasons(path: Path) -> dict[str, str]:
    """The comment behind each key of a template: why it is as it is."""
    return dict(_COMMENT.findall(read_text(path)))


def summary(path: Path) -> str:
    """What a shipped config is for: its first line."""
    return read_text(path).splitlines()[0].lstrip("# ")


def read_text(path: Path) -> str:
    """The text of a config; raises YiTuneError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise YiTuneError(
            "{path} cannot be read: {error}.", "A config is a text file in UTF-8.", path=path, error=error
        ) from None


def parse_overrides(assignments: list[str]) -> Config:
    """`--set key=value` typed by YAML's rules. Raises YiTuneError for an assignment without a key or without `=`."""
    overrides: Config = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise YiTuneError(
                "--set {assignment!r} is not key=value.", "For example: --set num_train_epochs=5", assignment=assignment
            )
        overrides[key.strip()] = parse_config(f"value: {value}", f"--set {assignment!r}")["value"]
    return overrides


def left_open(config: Config, key: str) -> bool:
    """Whether the value of a key is a placeholder."""
    return str(config.get(key)).startswith("${")


def dump_config(config: Config) -> str:
    """The config as YAML, in its own order."""
    return yaml.dump(config, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=1000)
