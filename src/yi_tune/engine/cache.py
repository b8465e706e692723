"""Keys and values of the conversation so far, so that a turn encodes only what is new in it."""

from itertools import takewhile

from transformers import DynamicCache


class PrefixCache:
    """What was computed for the last conversation of each of the answering models ("base", "tuned").

    Its size is bounded by the context: one conversation a model. Whoever generates takes a cache out and puts it
    back when it is done, so two generations never write into the same one.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[int], DynamicCache]] = {}

    def take(self, model: str, ids: list[int]) -> DynamicCache:
        """The cache of `model`, cut to what it shares with `ids`: empty when that is nothing.

        At least the last of `ids` is left to be computed, since its logits are not kept. Ids are compared, not
        text: a reply that is encoded otherwise than it was generated is shared up to the first difference.
        """
        known, cache = self._kept.pop(model, ([], DynamicCache()))
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, ids[:-1], strict=False)))
        if not shared:
            return DynamicCache()
        cache.crop(shared)
        return cache

    def keep(self, model: str, ids: list[int], cache: DynamicCache) -> None:
        """Put back what `take` gave. The last of `ids` was drawn but not read, so the cache does not hold it."""
        self._kept[model] = (ids[: cache.get_seq_length()], cache)

    def clear(self) -> None:
        """Let the memory go."""
        self._kept.clear()
