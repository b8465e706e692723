"""`yi-tune serve --engine vllm`: vLLM's own server, started with what a model needs to answer as it was trained.

Its options were looked up in vLLM's source (vllm/entrypoints/openai/cli_args.py, vllm/config/lora.py), and tried with
0.32, which has no bitsandbytes any more (tests/e2e/test_vllm.py).
"""

import json
import os
import shlex
from gettext import gettext as _
from pathlib import Path
from typing import NoReturn

from yi_tune import loading
from yi_tune.errors import YiTuneError
from yi_tune.export import read_record
from yi_tune.files import CHAT_TEMPLATE
from yi_tune.output import err
from yi_tune.runs import Run
from yi_tune.serve.app import names_of

# <|endoftext|>, <|im_start|>, <|im_end|>, <|im_sep|>: where a Yi-1.5 reply ends, in every tokenizer of Yi's.
_STOP_IDS = [2, 6, 7, 8]


def command(source: Run | Path, host: str, port: int, origins: tuple[str, ...]) -> list[str]:
    """The command that serves a run, or the export in a folder. Raises YiTuneError for no export, or one as GGUF."""
    if isinstance(source, Run):
        model = _with_adapter(source)
    else:
        folder = source.absolute()
        record = read_record(folder)
        if record["gguf"]:
            raise YiTuneError(
                "{folder} is GGUF, and vLLM takes safetensors.", "Make them: yi-tune export --format hf", folder=folder
            )
        model = [str(folder), "--served-model-name", record["run"]]
    # By itself it lets the pages of every origin in, and shows its documentation to those without a key.
    doors = ["--allowed-origins", json.dumps(list(origins)), "--disable-fastapi-docs"]
    return ["vllm", "serve", *model, "--host", host, "--port", str(port), *doors]


def _with_adapter(run: Run) -> list[str]:
    """What serves a run: its base, and the adapter on it. A note tells of a base that chat has in fewer bits.

    Writes into the run's folder vllm/generation_config.json, with the tokens that end a reply.
    """
    config, (tuned, base), folder = loading.run_config(run), names_of(run), run.folder / "vllm"
    if bits := config.get("quantization_bit"):
        err.print(
            _(
                "Note: vLLM has the base in 16 bits, chat in {bits}: some answers differ. Where memory "
                "holds 16, take the line quantization_bit out of {chat_yaml}."
            ).format(bits=bits, chat_yaml=run.chat_yaml)
        )
    folder.mkdir(exist_ok=True)
    ends = {"eos_token_id": _STOP_IDS, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")
    rank = json.loads((run.folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    room = max(8, 1 << (rank - 1).bit_length())  # powers of two are among the sizes that vLLM takes
    # As JSON: of NAME=PATH it takes no path with a comma or an equals sign in it.
    module = json.dumps({"name": tuned, "path": str(run.folder)}, ensure_ascii=False)
    return [
        *[str(config["model_name_or_path"]), "--served-model-name", base],
        *["--enable-lora", "--max-lora-rank", str(room), "--lora-modules", module],
        # The hub's own template leaves out the system turn's tokens.
        *["--chat-template", str(CHAT_TEMPLATE), "--generation-config", str(folder)],
    ]


def start(arguments: list[str], key: str | None) -> NoReturn:
    """Become vLLM's server. Raises YiTuneError when vLLM is not installed."""
    # The key is no argument: every user of the machine can read those.
    environment = os.environ | ({"VLLM_API_KEY": key} if key is not None else {})
    try:
        os.execvpe(arguments[0], arguments, environment)  # noqa: S606
    except FileNotFoundError:
        raise YiTuneError(
            "vLLM is not installed: there is no command `vllm`.",
            "It wants an environment of its own: uv tool install vllm   Or serve without it: --engine yi-tune",
        ) from None


def shown(arguments: list[str], key: str | None) -> str:
    """The command as a shell takes it. Where a key is asked for, it has to be in YI_TUNE_API_KEY, and is not shown."""
    asked = "" if key is None else 'VLLM_API_KEY="${YI_TUNE_API_KEY:?}" '
    return asked + shlex.join(arguments)
