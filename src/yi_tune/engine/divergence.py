"""The base beside the tuned model: its answers before training, and how far the tuned model has moved from it."""

import gc
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax

from yi_tune.config import Config
from yi_tune.data.general import LONGEST, BaseAnswer, Prompt, compare, introduces_base
from yi_tune.data.identity import Identity
from yi_tune.engine.assistant import Assistant, load_assistant
from yi_tune.sampling import Generation


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
        {
            "prompt": prompt.prompt,
            "answer": reply.text.strip(),
            "finished": reply.finish == "stop" and len(reply.prompt) + len(reply.tokens) <= cutoff_len,
        }
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def measure_forgetting(assistant: Assistant, prompts: list[Prompt], identity: Identity | None) -> dict[str, Any]:
    """Ask base and tuned model `prompts`, and compare them. The `kl` is over the answers in which the base does not
    introduce itself, for that is to change; None when there are none.
    """
    conversations = [prompt.messages for prompt in prompts]
    with assistant.base():
        base = assistant.greedy(conversations)
    compared = [reply for reply in base if not introduces_base(reply.text)]
    replies = compare(identity, prompts, [reply.text for reply in base], assistant.reply_all(conversations))
    return {"kl": mean_kl(assistant, compared) if compared else None, **replies}


@torch.inference_mode()
def mean_kl(assistant: Assistant, replies: list[Generation]) -> float:
    """The mean over all tokens of the base's `replies` of D_KL(tuned || base) of the next token, in nats: the direction
    of the KL penalty that keeps a tuned model near its base (Ziegler et al. 2019, arXiv:1909.08593).
    """

    def log_chances(reply: Generation) -> torch.Tensor:
        """Of each token of the reply, given all that comes before it: float32, [tokens, vocabulary]."""
        ids = torch.tensor([reply.prompt + reply.tokens[:-1]], device=model.device)
        logits = model(input_ids=ids, logits_to_keep=len(reply.tokens), use_cache=False).logits[0]
        return log_softmax(logits.float(), dim=-1)

    model, total = assistant.model, 0.0
    for reply in replies:
        with assistant.base():
            base = log_chances(reply)
        total += kl_div(base, log_chances(reply), log_target=True, reduction="sum").item()
    return total / sum(len(reply.tokens) for reply in replies)
