"""Asks the base, before it is trained."""

import gc

import torch

from yi_tune.config import Config
from yi_tune.data.general import Prompt
from yi_tune.data.replay import LONGEST, BaseAnswer
from yi_tune.engine.assistant import load_assistant


def ask_base(config: Config, prompts: list[Prompt], cutoff_len: int) -> list[BaseAnswer]:
    """The greedy answers of the model that `config` (a chat.yaml without adapter) loads, and unloads again: training
    loads it anew, and there may not be memory for two.

    An answer is finished when it ends by itself, and prompt and answer fit into `cutoff_len` tokens.
    """
    assistant = load_assistant(config)
    replies = assistant.greedy([prompt.messages for prompt in prompts], min(LONGEST, cutoff_len))
    del assistant
    gc.collect()  # modules refer to each other in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [
        BaseAnswer(prompt.prompt, reply.text, reply.finished and len(reply.prompt) + len(reply.answer) <= cutoff_len)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
