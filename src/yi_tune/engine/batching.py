"""Replies for many clients at once: one batch that they join and leave at any step.

transformers' `generate` keeps a batch together until its last row has ended, and its continuous batching has
neither seeds nor penalties (docs/decisions.md). Here the rows share one left-padded KV cache.
"""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tokenizers.decoders import DecodeStream
from torch.nn.functional import pad
from transformers import DynamicCache

from yi_tune.data.identity import Message
from yi_tune.engine.assistant import Assistant
from yi_tune.engine.drawing import Drawing, draw
from yi_tune.serve.generation import Generation, Piece, QueueFullError
from yi_tune.serve.stops import StopText

# Prompts are read in pieces of so many tokens, so that a client that goes away is noticed in between.
_CHUNK = 512


class _Row:
    """A reply in the making."""

    def __init__(self, generation: Generation, tokenizer: Any) -> None:
        self.generation = generation
        self.drawing = Drawing(generation)
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._decoder = DecodeStream([], True)
        self._decoded = ""
        self._unsent = ""
        self._stops = StopText(generation.stop)

    def append(self, token: int, stop_ids: Sequence[int]) -> bool:
        """Take the next token and pass its text on; returns whether the reply goes on."""
        finish: Literal["stop", "length"] | None = None
        text = ""
        if token in stop_ids:
            finish = "stop"
            drawn = len(self._tokens) + 1
        else:
            self._tokens.append(token)
            drawn = len(self._tokens)
            piece = self._decoder.step(self._tokenizer.backend_tokenizer, token) or ""
            self._decoded += piece
            text = self._stops.feed(piece)
            if self._stops.hit:
                finish = "stop"
            elif drawn == self.generation.max_new_tokens:
                finish = "length"
        if finish and not self._stops.hit:
            # The decoder holds back a character of which not all bytes are there.
            whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
            text += self._stops.feed(whole.removeprefix(self._decoded) if whole.startswith(self._decoded) else "")
            text += self._stops.rest()
        self._unsent += text
        if finish or (self._unsent and self.generation.stream):
            self.generation.emit(Piece(self._unsent, drawn, finish))
            self._unsent = ""
        return finish is None

    def fail(self) -> None:
        self.generation.emit(Piece("", len(self._tokens), "error"))


@dataclass
class _Batch:
    """The replies that one model is making.

    A layer of `cache` holds keys and values [rows, KV heads, width, head size]; `mask` [rows, width] is 1 where a
    row has a token and 0 left of where it begins; `tokens` [rows] are drawn and not yet in the cache.
    """

    assistant: Assistant
    rows: list[_Row] = field(default_factory=list)
    cache: Any = None
    mask: Any = None
    tokens: Any = None

    @torch.inference_mode()
    def add(self, new: list[_Row]) -> None:
        """Read the prompts of new rows and draw their first tokens."""
        for group in _of_like_length(new):
            width = max(len(row.generation.prompt) for row in group)
            padding = [width - len(row.generation.prompt) for row in group]
            filler = self.assistant.tokenizer.pad_token_id
            ids = self._tensor([[filler] * n + row.generation.prompt for n, row in zip(padding, group, strict=True)])
            mask = self._tensor([[0] * n + [1] * (width - n) for n in padding])
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            cache = DynamicCache()
            for begin in range(0, width, _CHUNK):
                if all(row.generation.cancelled for row in group):
                    break
                part = slice(begin, begin + _CHUNK)
                logits = self._forward(ids[:, part], mask[:, : begin + _CHUNK], positions[:, part], cache)
            else:
                self._join(group, cache, mask, logits)

    @torch.inference_mode()
    def step(self) -> None:
        """Give every row its next token; those that have ended, or are not wanted any more, leave."""
        self._keep([index for index, row in enumerate(self.rows) if not row.generation.cancelled])
        if not self.rows:
            return
        positions = self.mask.sum(-1, keepdim=True)
        self.mask = pad(self.mask, (0, 1), value=1)
        logits = self._forward(self.tokens.unsqueeze(-1), self.mask, positions, self.cache)
        going_on, self.tokens = self._take(self.rows, logits)
        self._keep(going_on)

    def fail(self, new: list[_Row]) -> None:
        """Tell everybody, the `new` ones too, that something went wrong, and be empty again."""
        # A row of `new` may be among the others already.
        for row in {id(row): row for row in [*self.rows, *new]}.values():
            row.fail()
        self.rows, self.cache, self.mask, self.tokens = [], None, None, None

    def _forward(self, ids: Any, mask: Any, positions: Any, cache: Any) -> Any:
        """Logits [rows, vocabulary] after the last of `ids`."""
        output = self.assistant.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _take(self, rows: list[_Row], logits: Any) -> tuple[list[int], Any]:
        """Draw a token for each row; returns the indices of those that go on, and the tokens of all."""
        tokens = draw(logits, [row.drawing for row in rows])
        stop_ids = self.assistant.stop_ids
        going_on = [index for index, row in enumerate(rows) if row.append(tokens[index], stop_ids)]
        return going_on, self._tensor(tokens)

    def _join(self, group: list[_Row], cache: Any, mask: Any, logits: Any) -> None:
        before = len(self.rows)
        going_on, tokens = self._take(group, logits)
        if not before:
            self.rows, self.cache, self.mask, self.tokens = group, cache, mask, tokens
        else:
            width = max(self.mask.shape[-1], mask.shape[-1])
            self.rows = [*self.rows, *group]
            self.tokens = torch.cat([self.tokens, tokens])
            self.mask = torch.cat([pad(one, (width - one.shape[-1], 0)) for one in (self.mask, mask)])
            for layer, other in zip(self.cache.layers, cache.layers, strict=True):
                layer.keys, layer.values = (
                    torch.cat([pad(one, (0, 0, width - one.shape[-2], 0)) for one in pair])
                    for pair in ((layer.keys, other.keys), (layer.values, other.values))
                )
        self._keep([*range(before), *(before + index for index in going_on)])

    def _keep(self, indices: list[int]) -> None:
        """Let all other rows go, and with them the columns that no row needs."""
        if len(indices) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in indices]
        if not self.rows:
            self.cache = self.mask = self.tokens = None
            return
        chosen = self._tensor(indices)
        mask = self.mask[chosen]
        unused = int(mask.argmax(-1).min())
        self.mask, self.tokens = mask[:, unused:], self.tokens[chosen]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[chosen][:, :, unused:], layer.values[chosen][:, :, unused:]

    def _tensor(self, values: Any) -> Any:
        return torch.tensor(values, device=self.assistant.model.device)


def _of_like_length(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Groups whose longest prompt is at most twice the shortest: no more than half of a group is padding."""
    group: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.generation.prompt)):
        if group and len(row.generation.prompt) > 2 * len(group[0].generation.prompt):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


class Batcher:
    """Makes replies in a thread of its own, up to `max_batch` at once; up to `max_waiting` more wait their turn."""

    def __init__(self, assistant: Assistant, max_batch: int, max_waiting: int) -> None:
        self.context = assistant.context
        self._assistant = assistant
        self._max_batch = max_batch
        self.capacity = max_batch + max_waiting
        self._waiting: deque[Generation] = deque()
        self.running = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batcher")
        self._thread.start()

    @property
    def waiting(self) -> int:
        with self._changed:
            return sum(not one.cancelled for one in self._waiting)

    @property
    def alive(self) -> bool:
        """Whether replies are being made."""
        return self._thread.is_alive()

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Token ids of the conversation up to where the assistant's reply begins."""
        return self._assistant.encode(messages)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text as it is."""
        return list(self._assistant.tokenizer.encode(text, add_special_tokens=False))

    def submit(self, generations: Sequence[Generation]) -> None:
        """Begin all of them as soon as there is room. Raises QueueFullError, and begins none, when there won't be."""
        with self._changed:
            self._waiting = deque(one for one in self._waiting if not one.cancelled)
            room = self.capacity - self.running - len(self._waiting)
            if len(generations) > room or self._closing:
                raise QueueFullError
            self._waiting.extend(generations)
            self._changed.notify()

    def close(self) -> None:
        """End what is running. The model goes when this object does."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        assistant = self._assistant
        batches = {base: _Batch(assistant) for base in (False, True)}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self.running)
                closing = self._closing
                new = self._admit() if not closing else []
            rows = {base: [_Row(one, assistant.tokenizer) for one in new if one.base == base] for base in batches}
            for base, batch in batches.items():
                if closing:
                    batch.fail(rows[base])
                elif rows[base] or batch.rows:
                    try:
                        with assistant.base() if base else nullcontext():
                            batch.add(rows[base])
                            batch.step()
                    except Exception:  # of memory, for one: whoever is in this batch is told, the server goes on
                        traceback.print_exc(file=sys.stderr)
                        batch.fail(rows[base])
            with self._changed:
                self.running = sum(len(batch.rows) for batch in batches.values())
            if closing:
                break
        for generation in self._waiting:
            generation.emit(Piece("", 0, "error"))

    def _admit(self) -> list[Generation]:
        """As many of those that wait as there is room for, counted as running from now on."""
        new: list[Generation] = []
        while self._waiting and self.running + len(new) < self._max_batch:
            generation = self._waiting.popleft()
            if not generation.cancelled:
                new.append(generation)
        self.running += len(new)
        return new
