"""A reply as it is generated: token ids in, whole characters out."""

import time

import torch
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

# What the bytes of an unfinished character decode to.
_UNFINISHED = "\ufffd"


class ReplyStreamer(TextIteratorStreamer):
    """Yields text as soon as its characters are whole, and keeps the ids and when the first of them came.

    transformers' own streamer waits for a space or a Chinese character: kana, Hangul or emoji in a row, and the
    punctuation of Chinese, would come late.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.new_ids: list[int] = []
        self.first_at: float | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (ignored), then one new token id at a time."""
        if self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        if self.first_at is None:
            self.first_at = time.monotonic()
        self.new_ids += value.tolist()
        self.token_cache += value.tolist()
        text = self._decoded()
        if not text.endswith(_UNFINISHED):
            self._emit(text)
            if text.endswith("\n"):  # a new start, so that decoding does not take longer and longer
                self.token_cache, self.print_len = [], 0

    def end(self) -> None:
        """What is left, without a character that was cut short."""
        self._emit(self._decoded().rstrip(_UNFINISHED))
        self.on_finalized_text("", stream_end=True)

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))

    def _emit(self, text: str) -> None:
        if piece := text[self.print_len :]:
            self.print_len = len(text)
            self.on_finalized_text(piece)
