"""How far the tuned model has moved from its base."""

from collections.abc import Iterator

import torch
from torch.nn.functional import kl_div, log_softmax

from yi_tune.engine.assistant import Assistant, Reply

# Answer tokens whose logits are held at once: with Yi's vocabulary of 64,000, 130 MB of float32 for each model.
_TOKENS = 512


@torch.inference_mode()
def mean_kl(assistant: Assistant, replies: list[Reply]) -> float:
    """The mean over all tokens of `replies` of D_KL(tuned || base), in nats, over the whole vocabulary.

    `replies` are the base's own: at each token of its answer, base and tuned model are compared on what they would
    say next. It is the direction of the KL penalty that keeps a tuned model near its base (Ziegler et al. 2019,
    arXiv:1909.08593), which there is estimated on texts of the tuned model.
    """
    total = 0.0
    for batch in _batches(replies):
        tuned = log_softmax(assistant.answer_logits(batch), dim=-1)
        with assistant.base():
            base = log_softmax(assistant.answer_logits(batch), dim=-1)
        total += kl_div(base, tuned, log_target=True, reduction="sum").item()
    return total / sum(len(reply.answer) for reply in replies)


def _batches(replies: list[Reply]) -> Iterator[list[Reply]]:
    """Replies of similar length, padded to no more than _TOKENS answer tokens, or a single one."""
    batch: list[Reply] = []
    for reply in sorted(replies, key=lambda reply: len(reply.answer)):
        if batch and (len(batch) + 1) * len(reply.answer) > _TOKENS:
            yield batch
            batch = []
        batch.append(reply)
    if batch:
        yield batch
