"""The base beside the tuned model: its answers before training, and how far the tuned model has moved from it."""

import gc
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax

from yi_tune.config import Config
from yi_tune.data.general import LONGEST, BaseAnswer, Prompt, check_prompts, compare, introduces_base
from yi_tune.data.heldout import Score, questions, score
from yi_tune.data.identity import Identity
from yi_tune.engine.assistant import Assistant, load_assistant, share
from yi_tune.sampling import Generation


def ask_base(config: Config, prompts: list[Prompt], cutoff_len: int) -> list[BaseAnswer]:
    """What `base_answers` gives of the model that `config` (a chat.yaml without adapter) loads, and unloads again:
    training loads it anew, and there may not be memory for two.
    """
    answers = base_answers(load_assistant(config), prompts, cutoff_len)
    gc.collect()  # modules refer to each other in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return answers


def base_answers(assistant: Assistant, prompts: list[Prompt], cutoff_len: int) -> list[BaseAnswer]:
    """The greedy answers of a model without adapter. One is finished when it ends by itself, and prompt and answer fit
    into `cutoff_len` tokens.
    """
    replies = assistant.greedy([prompt.messages for prompt in prompts], min(LONGEST, cutoff_len))
    return [
        {
            "prompt": prompt.prompt,
            "answer": reply.text.strip(),
            "finished": reply.finish == "stop" and len(reply.prompt) + len(reply.tokens) <= cutoff_len,
        }
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def check(assistant: Assistant, identity: Identity | None) -> tuple[Score, dict[str, Any]]:
    """All that `yi-tune check` measures: on the held-out questions, and on the general prompts."""
    scored = score(questions(), identity, assistant.base_reply_all, assistant.reply_all)
    return scored, measure_forgetting(assistant, check_prompts(), identity)


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

    def distance(reply: Generation) -> float:
        with assistant.base():
            base = log_chances(reply)
        return kl_div(base, log_chances(reply), log_target=True, reduction="sum").item()

    model = assistant.model
    return sum(share(replies, distance)) / sum(len(reply.tokens) for reply in replies)
