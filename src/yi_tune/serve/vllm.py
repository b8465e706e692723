"""`yi-tune serve --engine vllm`: vLLM's own server, started with what a run needs to answer as it was trained."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import NoReturn

from yi_tune.config import Config
from yi_tune.errors import YiTuneError
from yi_tune.serve.app import Names
from yi_tune.serve.server import Key

# ChatML as LLaMA-Factory's template `yi` writes it. The hub's own template leaves out the system turn's tokens.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n"
)
# <|endoftext|>, <|im_start|>, <|im_end|>, <|im_sep|>: where a Yi-1.5 reply ends, in every tokenizer of Yi's.
_STOP_IDS = [2, 6, 7, 8]


def write_files(folder: Path) -> None:
    """Write the chat template, and a generation_config.json with the tokens that end a reply."""
    folder.mkdir(exist_ok=True)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    config = {"eos_token_id": _STOP_IDS, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def command(config: Config, names: Names, host: str, port: int, folder: Path, origins: tuple[str, ...]) -> list[str]:
    """The command for a run's `config` (as `loading.run_config` gives it), with the files of `write_files`."""
    adapter = config.get("adapter_name_or_path")
    arguments = ["vllm", "serve", str(config["model_name_or_path"])]
    arguments += ["--served-model-name", names.tuned if adapter is None else names.base]
    if adapter is not None:
        rank = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        # vLLM has room for ranks of these sizes.
        room = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
        arguments += ["--enable-lora", "--max-lora-rank", str(room), "--lora-modules", f"{names.tuned}={adapter}"]
    if config.get("quantization_bit") == 4:
        # What the adapter was fitted to.
        arguments += ["--quantization", "bitsandbytes"]
    arguments += ["--chat-template", str(folder / "chat_template.jinja"), "--generation-config", str(folder)]
    arguments += ["--host", host, "--port", str(port)]
    if origins:
        arguments += ["--allowed-origins", json.dumps(list(origins))]
    return arguments


def start(arguments: list[str], key: Key) -> NoReturn:
    """Become vLLM's server. Raises YiTuneError when it is not installed."""
    if shutil.which(arguments[0]) is None:
        raise YiTuneError(
            "vLLM is not installed: there is no command `vllm`.",
            "It wants an environment of its own: uv tool install vllm   Or serve without it: --engine yi-tune",
        )
    # Not as an argument, which every user of the machine can read.
    environment = os.environ | ({"VLLM_API_KEY": key.value} if key.value is not None else {})
    os.execvpe(arguments[0], arguments, environment)  # noqa: S606


def shown(arguments: list[str]) -> str:
    """The command as a shell takes it."""
    return shlex.join(arguments)
