"""Time to the first token of ten turns of a long conversation, with what was read kept and without: `make bench-chat`.

Both sides are the same Assistant, greedy; without, its cache is emptied before every turn. Writes docs/bench-chat.md.
With `--model FOLDER` another model than nano: on a GPU, bench/random_model.py's.
"""

import argparse
import statistics
from pathlib import Path

import torch

from bench.pages import DOCS, MACHINE, table, write
from yi_tune import loading
from yi_tune.sampling import Sampling

ROUNDS = 5
TURNS = 10
# About 300 tokens of nano's vocabulary a turn: ten of them fill most of a context of 4,096.
MESSAGE = "2加3等于几？法国的首都是哪座城市？ What is the capital of France? " * 6


def main() -> None:
    """Hold the conversation and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--page", type=Path, default=DOCS / "bench-chat.md")
    options = parser.parse_args()
    assistant = loading.load(loading.chat_config(Path().absolute(), None, options.model, base=True))
    sampling = Sampling(max_new_tokens=32)

    def talk(*, keep: bool) -> tuple[list[str], list[float], list[int]]:
        """Replies, seconds to their first tokens, and tokens of their prompts."""
        messages, replies, seconds, tokens = [], [], [], []
        assistant.cache.clear()
        for turn in range(TURNS):
            if not keep:
                assistant.cache.clear()
            messages.append({"role": "user", "content": f"{turn}. {MESSAGE}"})
            replies.append("".join(assistant.stream(messages, sampling)))
            messages.append({"role": "assistant", "content": replies[-1]})
            assert assistant.last is not None  # noqa: S101 (for the type checker)
            seconds.append(assistant.last.first_token_seconds)
            tokens.append(assistant.last.prompt_tokens)
        return replies, seconds, tokens

    talk(keep=True)  # the first pass through a kernel takes longer
    rounds: dict[bool, list[list[float]]] = {True: [], False: []}
    said: dict[bool, list[str]] = {}
    tokens: list[int] = []
    for number in range(ROUNDS):
        for keep in (True, False) if number % 2 == 0 else (False, True):
            said[keep], seconds, tokens = talk(keep=keep)
            rounds[keep].append(seconds)
            print(f"{'kept' if keep else 'read anew'}: {sum(seconds):.2f} s to ten first tokens", flush=True)
    kept, anew = ([statistics.median(turn) for turn in zip(*rounds[keep], strict=True)] for keep in (True, False))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    same = sum(a == b for a, b in zip(said[True], said[False], strict=True))
    lines = [
        f"Ten turns of one conversation with {Path(options.model).name}, greedy, medians of {ROUNDS} rounds",
        f"in turn, {MACHINE}, {device}. *Kept*: keys and values of the turns before are still there.",
        f"*Read anew*: the whole conversation is encoded every turn. The same reply on both sides: {same} of {TURNS}.",
        "",
        *table("turn", "tokens of the prompt", "kept, ms", "read anew, ms", "ratio"),
    ]
    for turn, (length, with_it, without) in enumerate(zip(tokens, kept, anew, strict=True), start=1):
        lines.append(f"| {turn} | {length} | {with_it * 1e3:.1f} | {without * 1e3:.1f} | {with_it / without:.2f} |")
    lines += [
        "",
        f"From the second turn to the tenth the time grows {kept[-1] / kept[1]:.1f} times when kept, "
        f"{anew[-1] / anew[1]:.1f} times when read anew.",
    ]
    write(options.page, "The chat: time to the first token", "chat", lines)


if __name__ == "__main__":
    main()
