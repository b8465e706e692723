"""The next token of each row of a batch, every row with sampling parameters of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch

from yi_tune.serve.generation import Generation

# Below this a temperature is taken for 0: the logits divided by it would leave the range of floats.
_GREEDY_BELOW = 1e-4


@dataclass(eq=False)
class Drawing:
    """How one row's tokens are drawn. A seed makes its draws the same whatever else is in the batch."""

    generation: Generation
    random: Random = field(init=False)
    _counts: torch.Tensor | None = field(default=None, init=False)  # how often each token is in the reply so far

    def __post_init__(self) -> None:
        self.random = Random(self.generation.seed)  # noqa: S311 (None seeds from the system)

    @property
    def greedy(self) -> bool:
        return self.generation.temperature < _GREEDY_BELOW

    def penalise(self, logits: torch.Tensor) -> None:
        """Lower, in place, the logits [vocabulary] of tokens that the reply has already."""
        if self._counts is not None:
            asked = self.generation
            logits -= asked.frequency_penalty * self._counts + asked.presence_penalty * (self._counts > 0)

    def count(self, token: int, like: torch.Tensor) -> None:
        """Take note of a token drawn; `like` is a row of logits."""
        if self.generation.presence_penalty or self.generation.frequency_penalty:
            if self._counts is None:
                self._counts = torch.zeros_like(like)
            self._counts[token] += 1


def draw(logits: torch.Tensor, drawings: Sequence[Drawing]) -> list[int]:
    """A token for each row of `logits` [rows, vocabulary] (float32, changed in place)."""
    for row, drawing in zip(logits, drawings, strict=True):
        drawing.penalise(row)
    tokens = logits.argmax(-1)
    if sampled := [index for index, drawing in enumerate(drawings) if not drawing.greedy]:
        asked = [drawings[index] for index in sampled]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, device=logits.device).unsqueeze(-1)

        temperature = column([drawing.generation.temperature for drawing in asked])
        top_p = column([drawing.generation.top_p for drawing in asked])
        uniform = column([drawing.random.random() for drawing in asked])
        chances, order = torch.softmax(logits[sampled] / temperature, -1).sort(-1, descending=True)
        # The most likely tokens until their sum reaches top_p, the first one in any case (nucleus sampling,
        # arXiv 1904.09751); then the inverse of the cumulative distribution at `uniform`.
        before = chances.cumsum(-1) - chances
        kept = before < top_p
        kept[:, 0] = True
        cumulative = (chances * kept).cumsum(-1)
        place = (cumulative <= uniform * cumulative[:, -1:]).sum(-1, keepdim=True)
        tokens[sampled] = order.gather(-1, place.minimum(kept.sum(-1, keepdim=True) - 1)).squeeze(-1)
    drawn: list[int] = tokens.tolist()
    for token, row, drawing in zip(drawn, logits, drawings, strict=True):
        drawing.count(token, row)
    return drawn
