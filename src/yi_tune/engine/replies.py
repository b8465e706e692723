"""Replies, token by token: one for `chat`, 32 for `check`, as many as there are clients for `serve`.

transformers' `generate` keeps a batch together until its last row has ended, and its continuous batching has neither
seeds nor penalties (docs/decisions.md). Here rows join and leave at any step; they share one left-padded KV cache.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

from yi_tune.sampling import Generation

# Prompts are read in pieces of so many tokens, so that a client that goes away is noticed in between.
_CHUNK = 512


class Batch:
    """The replies that one model is making; `ends` are the tokens that end one.

    A layer of `cache` holds keys and values [rows, KV heads, width, head size]; `mask` [rows, width] is 1 where a
    row has a token and 0 left of where it begins. The last token of a row is drawn and not yet in the cache.
    """

    def __init__(self, model: Any, tokenizer: Any, ends: Sequence[int]) -> None:
        self.rows: list[Generation] = []
        self._model, self._tokenizer, self._ends = model, tokenizer, ends
        self._cache: Any = None
        self._mask: Any = None

    @torch.inference_mode()
    def add(self, new: list[Generation], cache: DynamicCache | None = None) -> None:
        """Read the prompts of new rows and draw their first tokens. `cache`: the beginning of a single row's prompt."""
        cache = DynamicCache() if cache is None else cache
        ids, mask = left_padded([row.prompt for row in new], self._model.device)
        for begin in range(cache.get_seq_length(), ids.shape[1], _CHUNK):
            if all(row.cancelled for row in new):
                return
            end = begin + _CHUNK
            logits = self._forward(ids[:, begin:end], mask[:, :end], cache)
        self._take(new, logits)
        if not self.rows:
            self.rows, self._cache, self._mask = new, cache, mask
        else:
            masks: Any = (self._mask, mask)
            width = max(one.shape[1] for one in masks)
            self.rows = [*self.rows, *new]
            self._mask = torch.cat([pad(one, (width - one.shape[1], 0)) for one in masks])
            joining: Any = cache.layers
            for layer, other in zip(self._cache.layers, joining, strict=True):
                layer.keys, layer.values = (
                    torch.cat([pad(one, (0, 0, width - one.shape[2], 0)) for one in pair])
                    for pair in ((layer.keys, other.keys), (layer.values, other.values))
                )
        self._leave()

    @torch.inference_mode()
    def step(self) -> None:
        """Give every row its next token; those that have ended, or are not wanted any more, leave."""
        if self.rows:
            self._mask = pad(self._mask, (0, 1), value=1)
            ids = self._mask.new_tensor([row.tokens[-1:] for row in self.rows])
            self._take(self.rows, self._forward(ids, self._mask, self._cache))
            self._leave()

    def _forward(self, ids: Any, mask: Any, cache: Any) -> Any:
        """Logits [rows, vocabulary], float32, after the last of `ids`; `mask` is of all that is read by then."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        return output.logits[:, -1].float()

    def _take(self, rows: list[Generation], logits: Any) -> None:
        for row, token in zip(rows, draw(logits, rows), strict=True):
            row.take(token, self._tokenizer, self._ends)

    def _leave(self) -> None:
        """Let rows that are over go, and with them the columns that no other row needs."""
        staying = [index for index, row in enumerate(self.rows) if not row.over]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in staying]
        if not staying:
            self._cache = self._mask = None
            return
        mask = self._mask[staying]
        unused = int(mask.argmax(-1).min())
        self._mask = mask[:, unused:]
        for layer in self._cache.layers:
            layer.keys, layer.values = (one[staying][:, :, unused:] for one in (layer.keys, layer.values))


def left_padded(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the left to one length, and the attention mask."""
    width = max(len(row) for row in rows)
    ids = [[0] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def draw(logits: torch.Tensor, rows: list[Generation]) -> list[int]:
    """A token for each row of `logits` [rows, vocabulary] (float32), each as its own sampling says.

    A row with a seed draws the same whatever else is in the batch.
    """
    for index, row in enumerate(rows):
        if row.sampling.repetition_penalty != 1:
            seen = torch.tensor([row.prompt + row.tokens], device=logits.device)
            logits[index] = RepetitionPenaltyLogitsProcessor(row.sampling.repetition_penalty)(seen, logits[[index]])[0]
    tokens = logits.argmax(-1)
    # Logits divided by a lower temperature would be no floats.
    if drawn := [index for index, row in enumerate(rows) if row.sampling.temperature >= 1e-4]:
        sampled = [rows[index] for index in drawn]
        size = logits.shape[-1]
        asked = [
            (one.temperature, one.top_p, min(one.top_k, size) if one.top_k > 0 else size, row.random.random())
            for row in sampled
            for one in [row.sampling]
        ]
        temperature, top_p, top_k, uniform = torch.tensor(asked, device=logits.device).T.unsqueeze(-1)
        chances, order = torch.softmax(logits[drawn] / temperature, -1).sort(-1, descending=True)
        # The top_k most likely tokens, and of these the most likely until their sum reaches that share of the whole,
        # the first one in any case (nucleus sampling, arXiv 1904.09751); then the inverse of the cumulative
        # distribution at `uniform`.
        kept = torch.arange(size, device=logits.device) < top_k
        chances = chances * kept
        cumulative = chances.cumsum(-1)
        kept &= cumulative - chances < top_p * cumulative[:, -1:]
        kept[:, 0] = True
        cumulative = (chances * kept).cumsum(-1)
        place = (cumulative <= uniform * cumulative[:, -1:]).sum(-1, keepdim=True)
        tokens[drawn] = order.gather(-1, place.minimum(kept.sum(-1, keepdim=True) - 1)).squeeze(-1)
    return list(tokens.tolist())
