"""LLaMA-Factory's own chat, as `llamafactory-cli chat chat.yaml` starts it."""

import json
import sys
import threading
from pathlib import Path

from llamafactory.chat.chat_model import run_chat

from yi_tune.config import Config, read_config
from yi_tune.errors import YiTuneError
from yi_tune.output import log_traceback


def chat(chat_yaml: Path, config: Config) -> None:
    """Chat as `chat_yaml` says, until `exit` or the end of the input.

    Values of `config` that differ from the file's go along: a run folder may have been moved. Raises YiTuneError when
    the chat fails.
    """
    written = read_config(chat_yaml)
    changes = [f"{key}={json.dumps(value)}" for key, value in config.items() if written.get(key) != value]
    sys.argv = ["llamafactory-cli", str(chat_yaml), *changes]  # read there
    try:
        run_chat()
    except EOFError:
        print()
    except Exception as error:
        raise YiTuneError(
            f"LLaMA-Factory's chat failed: {error}", f"The whole story is in {log_traceback()}"
        ) from error
    finally:
        # Its thread outlives the reply a little, and Python aborts when it exits before.
        for thread in threading.enumerate():
            if "(generate)" in thread.name:
                thread.join(timeout=10)
