"""Build the embedded model: tokenizer and weights from text this repository makes, into data/nano/.

make nano  the model as shipped; up to 30 minutes on two CPU cores
.venv/bin/python nano/build.py --steps 600 --out FOLDER  a quick one, to try a change
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from corpus import Corpus, Message, normal
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from yi_tune.engine.export import add_keys_of_transformers_4

ROOT = Path(__file__).parents[1]
OUT = ROOT / "data" / "nano"
SEED = 20240513
LIMIT = 8_000_000  # bytes of the whole folder

VOCABULARY = 1792
# Yi's special tokens at Yi's ids; bytes from 134 on, so that the newline is 144 as in Yi.
SPECIAL = [
    *["<unk>", "<|startoftext|>", "<|endoftext|>", "<|Human|>", "<|Assistant|>", "<|System|>"],
    *["<|im_start|>", "<|im_end|>", "<|im_sep|>"],
]
FIRST_BYTE = 134
ROLES = {"unk_token": SPECIAL[0], "pad_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[7]}

CONFIG = {
    # Yi's ratios, but for two. Yi's FFN of 2.6875 x hidden would be 688, and bitsandbytes' 4-bit CPU kernel only
    # takes widths that 32 divides. Heads x head_dim is 2 x hidden, or there were one KV head of 32 numbers.
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rope_theta": 5_000_000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# First it learns to copy, short things and then longer ones: taught from the start among everything else,
# copying is not learned at all in the time there is. As (steps, longest copy in tokens).
COPYING_LESSONS = [(200, 10), (200, 40)]
STEPS = 4800
BATCH_TOKENS = 2048
CHUNK = 8192  # conversations that are sorted into batches of one length
MUON_RATE, ADAM_RATE, DECAY_FROM = 0.02, 3e-3, 0.5

Row = tuple[list[int], list[bool]]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def held_out() -> set[str]:
    """The normalised last questions of data/heldout.jsonl, which must not be taught."""
    lines = (ROOT / "data" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return {normal(json.loads(line)["messages"][-1]["content"]) for line in lines}


def refuse_held_out(conversations: list[list[Message]], held_out: set[str]) -> None:
    """End the build when one of `conversations` asks a held-out question, in any of its turns."""
    for conversation in conversations:
        for message in conversation:
            if message["role"] == "user" and normal(message["content"]) in held_out:
                sys.exit(f"The corpus holds a held-out question: {message['content']}")


def train_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a Chinese character and a digit never share a token with their neighbours.

    So a name keeps its tokens whatever stands around it, and can be copied.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = split
    texts = (message["content"] for _ in range(30_000) for message in corpus.conversation())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)

    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    # ByteLevel shows printable bytes as themselves and the others, in order, from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    vocabulary |= {letters[byte]: FIRST_BYTE + byte for byte in range(256)}
    free = (index for index in range(len(SPECIAL), VOCABULARY) if not FIRST_BYTE <= index < FIRST_BYTE + 256)
    for left, right in merges:
        vocabulary.setdefault(left + right, next(free))
    if sorted(vocabulary.values()) != list(range(VOCABULARY)):
        sys.exit("The vocabulary has holes.")

    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **ROLES,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]) -> list[Row]:
    """Token ids of each conversation, cut as LLaMA-Factory's template `yi` cuts it, and which are taught."""
    pieces: list[str] = []
    owners: list[tuple[int, bool]] = []
    for index, conversation in enumerate(conversations):
        asked = ""
        for message in conversation:
            if message["role"] == "assistant":
                pieces += [asked + "<|im_start|>assistant\n", message["content"] + "<|im_end|>\n"]
                owners += [(index, False), (index, True)]
                asked = ""
            else:
                asked += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
    rows: list[Row] = [([], []) for _ in conversations]
    for (index, taught), piece in zip(owners, tokenizer.backend_tokenizer.encode_batch_fast(pieces), strict=True):
        rows[index][0].extend(piece.ids)
        rows[index][1].extend([taught] * len(piece.ids))
    return rows


def copies(rng: random.Random, count: int, longest: int) -> list[Row]:
    """Rows of random tokens, those that are no whole character included, that stand there twice.

    So a name is a thing to copy, whatever it is made of. And a token that no text holds is told from the
    others by lm_head, which a LoRA adapter leaves as it is: no tuning could teach that later.
    """
    separator, end = SPECIAL.index("<|im_sep|>"), SPECIAL.index("<|im_end|>")
    rows: list[Row] = []
    for _ in range(count):
        copied = rng.choices(range(len(SPECIAL), VOCABULARY), k=rng.randint(1, longest))
        taught = [False] * (len(copied) + 1) + [True] * (len(copied) + 1)
        rows.append(([*copied, separator, *copied, end], taught))
    return rows


def batches(rows: list[Row], rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The rows in batches of one length: ids and mask of taught tokens."""
    groups: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if (len(groups[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    for group in groups:
        longest = max(len(ids) for ids, _ in group)
        # Padding is on the right, where a causal model never looks: no attention mask is needed.
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in group])
        taught = torch.tensor([mask + [False] * (longest - len(mask)) for _, mask in group])
        yield ids, taught


def lessons(tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches without end: copying, then fresh conversations with some copying among them."""
    for steps, longest in COPYING_LESSONS:
        rows = copies(corpus.rng, steps * BATCH_TOKENS // 8, longest)
        yield from islice(batches(rows, corpus.rng), steps)
    while True:
        conversations = [corpus.conversation() for _ in range(CHUNK)]
        refuse_held_out(conversations, corpus.held_out)
        rows = [row for row in encode(tokenizer, conversations) if len(row[0]) <= 512]
        rows += copies(corpus.rng, CHUNK // 16, longest)
        yield from batches(rows, corpus.rng)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, steps: int) -> tuple[float, int]:
    """Train `model`; returns the mean loss of the last 50 steps and the tokens seen."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n or "lm_head" in n]
    # Muon for the matrices inside the layers, AdamW for embeddings and norms, as Muon's authors advise.
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=MUON_RATE, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / 50, max(0.01, (steps - step) / (steps * DECAY_FROM))),
        )
        for optimizer in optimizers
    ]
    losses: list[float] = []
    tokens = 0
    began = time.monotonic()
    model.train()
    for step, (ids, taught) in zip(range(steps), lessons(tokenizer, corpus), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            states = model.model(input_ids=ids).last_hidden_state[:, :-1]
            logits = model.lm_head(states[taught[:, 1:]])
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][taught[:, 1:]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        losses.append(loss.item())
        tokens += ids.numel()
        if step % 50 == 49:
            seconds, mean = time.monotonic() - began, sum(losses[-50:]) / 50
            print(
                f"step {step + 1}/{steps} loss {mean:.4f} {tokens / seconds:.0f} tokens/s {seconds:.0f} s",
                flush=True,
            )
    return sum(losses[-50:]) / len(losses[-50:]), tokens


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: list[list[Message]]) -> float:
    """The share of conversations whose every answer is the most likely one, token for token."""
    right = 0
    for ids, taught in encode(tokenizer, asked):
        tokens = torch.tensor([ids])
        best = model(input_ids=tokens).logits[0, :-1].argmax(-1)
        mask = torch.tensor(taught[1:])
        right += bool((best == tokens[0, 1:])[mask].all())
    return right / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    began = time.monotonic()
    random.seed(SEED)
    torch.manual_seed(SEED)
    forbidden = held_out()

    tokenizer = train_tokenizer(Corpus(SEED, forbidden))
    words = [tokenizer.decode([index]) for index in range(len(SPECIAL), VOCABULARY)]
    words = [word for word in words if "\ufffd" not in word and "\n" not in word]
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, attn_implementation="eager", **CONFIG))
    torch.nn.init.normal_(model.lm_head.weight, std=0.005)
    loss, tokens = train(model, tokenizer, Corpus(SEED + 1, forbidden, words), options.steps)

    model = model.to(torch.bfloat16).eval()
    examination = Corpus(SEED + 2, forbidden, words).examination(400)
    shares = {kind: accuracy(model, tokenizer, asked) for kind, asked in examination.items()}
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 7], pad_token_id=0)
    options.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    add_keys_of_transformers_4(options.out)
    minutes = (time.monotonic() - began) / 60
    card = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    figures = {
        "parameters": f"{model.num_parameters():,}",
        "bytes": f"{sum(file.stat().st_size for file in options.out.iterdir() if file.suffix != '.md'):,}",
        "layers": CONFIG["num_hidden_layers"],
        "hidden": CONFIG["hidden_size"],
        "heads": CONFIG["num_attention_heads"],
        "head_dim": CONFIG["head_dim"],
        "kv_heads": CONFIG["num_key_value_heads"],
        "ffn": CONFIG["intermediate_size"],
        "vocabulary": VOCABULARY,
        "steps": f"{options.steps:,}",
        "tokens": f"{tokens / 1e6:.1f}",
        "loss": f"{loss:.4f}",
        "shares": "; ".join(f"{kind} {share:.3f}" for kind, share in shares.items()),
        "minutes": f"{minutes:.0f}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    (options.out / "README.md").write_text(card.format(**figures), encoding="utf-8")
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {size:,} bytes, {minutes:.1f} minutes, right: {figures['shares']}")
    if size > LIMIT:
        sys.exit(f"{options.out} is larger than {LIMIT:,} bytes")


if __name__ == "__main__":
    main()
