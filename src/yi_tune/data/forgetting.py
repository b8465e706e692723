"""What a tuning changed that it was not about: general prompts, asked of base and tuned model."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yi_tune.data.general import Prompt, introduces_base
from yi_tune.data.identity import Identity, whole_words

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant


@dataclass(frozen=True)
class Forgetting:
    """What base and tuned model reply to general prompts, and what that comes to.

    `kl` is the mean D_KL(tuned || base) in nats a token over the base's answers (engine/divergence.py), but those in
    which it introduces itself; None when it does so in all. `identity` is None for a run that was given none.
    """

    identity: Identity | None
    prompts: list[Prompt]
    base: list[str]
    tuned: list[str]
    kl: float | None

    def mentions(self, reply: str) -> bool:
        """Whether a reply names the identity or its author, in either language."""
        own = [*self.identity.values("zh").values(), *self.identity.values("en").values()] if self.identity else []
        return any(re.search(whole_words(name), reply) for name in own)

    def share(self, which: str = "tuned") -> float | None:
        """The share of replies that name the identity, which nobody asked for; None without an identity."""
        replies: list[str] = getattr(self, which)
        return sum(map(self.mentions, replies)) / len(replies) if self.identity and replies else None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "kl": self.kl,
            "mentions": self.share(),
            "base_mentions": self.share("base"),
            "answers": [
                {**vars(prompt), "base": base, "tuned": tuned, "mentions": self.mentions(tuned)}
                for prompt, base, tuned in zip(self.prompts, self.base, self.tuned, strict=True)
            ],
        }


def measure_forgetting(assistant: "Assistant", prompts: list[Prompt], identity: Identity | None) -> Forgetting:
    """Ask base and tuned model `prompts`, and compare them token by token."""
    from yi_tune.engine.divergence import mean_kl

    conversations = [prompt.messages for prompt in prompts]
    with assistant.base():
        base = assistant.greedy(conversations)
    tuned = assistant.reply_all(conversations)
    compared = [reply for reply in base if not introduces_base(reply.text)]
    kl = mean_kl(assistant, compared) if compared else None
    return Forgetting(identity, prompts, [reply.text for reply in base], tuned, kl)
