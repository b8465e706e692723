"""A run beside its exports: `make bench-export` trains nano and writes docs/bench-export.md.

Each format is loaded as other programs load it, by plain transformers, and asked the held-out questions. Nothing here
is a time: the figures are those of any quiet or busy machine with this kind of processor.
"""

import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.pages import DOCS, table, write
from yi_tune import loading
from yi_tune.data.heldout import Score, questions, score
from yi_tune.data.identity import Identity, Message
from yi_tune.export import check_exported, export, plan_export
from yi_tune.hardware import cpu_has_bf16
from yi_tune.output import percent
from yi_tune.plan.plan import plan
from yi_tune.train import run

IDENTITY = Identity("小易", "李雷")
FORMATS = {"hf": None, "gguf f16": "f16", "gguf q8_0": "q8_0", "gguf q4_0": "q4_0"}


def asked(reply_all: Callable[[list[list[Message]]], list[str]]) -> Score:
    """The held-out questions, answered by one model only."""
    return score(questions(), IDENTITY, lambda conversations: [""] * len(conversations), reply_all)


def agreement(one: Score, other: Score) -> float:
    """The share of replies that are the same, word for word."""
    same = [mine["tuned"] == others["tuned"] for mine, others in zip(one["answers"], other["answers"], strict=True)]
    return sum(same) / len(same)


def difference(merged: Path, beside: PeftModel, dtype: torch.dtype) -> tuple[float, float]:
    """The largest difference of a logit, and the largest logit, over all positions of all questions."""
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=dtype).eval()
    beside.to(dtype)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    apart = largest = 0.0
    for question in questions():
        inputs = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, return_tensors="pt")
        with torch.inference_mode():
            one, other = model(**inputs).logits.float(), beside(**inputs).logits.float()
        apart, largest = max(apart, (one - other).abs().max().item()), max(largest, other.abs().max().item())
    return apart, largest


def measure(config: str, workspace: Path) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """The rows of a run with the profile `config`, and what `difference` finds, by the dtype computed in."""
    planned = plan(IDENTITY, model="nano", config=config, workspace=workspace)
    run(planned, fresh=False)
    tuned = planned.run
    base_config, chat_config = loading.base_config(tuned), loading.run_config(tuned)
    chats = {"chat": chat_config}
    if bits := planned.config.get("quantization_bit"):
        chats[f"chat in {bits} bits"] = {**chat_config, "quantization_bit": bits}
    chatted = {title: asked(loading.load(config).reply_all) for title, config in chats.items()}
    chat = chatted["chat"]
    assistant = loading.load(chat_config)
    base = AutoModelForCausalLM.from_pretrained(base_config["model_name_or_path"], dtype="auto")
    assistant.model = PeftModel.from_pretrained(base, str(tuned.folder)).eval()
    beside = asked(assistant.reply_all)
    rows = [
        f"| {title} | | {percent(score['recall'])} | {agreement(score, beside):.3f} | {agreement(score, chat):.3f} | |"
        for title, score in (chatted | {"base in 16 bits, adapter beside it": beside}).items()
    ]
    for title, quant in FORMATS.items():
        exporting = plan_export(tuned, base_config, workspace / title, quant, workspace)
        export(exporting, force=False)
        scored = check_exported(exporting.target)
        size = sum(file.stat().st_size for file in exporting.target.iterdir())
        rows.append(
            f"| {title} | {size / 1e6:.1f} MB | {percent(scored['recall'])} "
            f"| {agreement(scored, beside):.3f} | {agreement(scored, chat):.3f} "
            f"| {scored['unfinished']} |"
        )
    logits = {
        str(dtype).removeprefix("torch."): difference(workspace / "hf", assistant.model, dtype)
        for dtype in (torch.bfloat16, torch.float32)
    }
    return rows, logits


def main() -> None:
    columns = ("size", "identity questions right", "agrees with 16-bit base + adapter", "agrees with chat")
    lines = [
        f"nano, tuned to {IDENTITY.name} by {IDENTITY.author}; {len(questions())} held-out conversations, greedy; "
        f"{platform.machine()}, computed in {'bfloat16' if cpu_has_bf16() else 'float32'}.",
        "Agreement is the share of replies that are the same word for word. `chat` answers from the base in 16 bits,",
        "which an export holds, and where memory is short from the base in 4, which the run was trained on.",
    ]
    for config, bits in (("qlora", "4 bits, the default"), ("lora", "16 bits")):
        with tempfile.TemporaryDirectory() as name:
            rows, logits = measure(config, Path(name))
        lines += [
            "",
            f"## Trained with `--config {config}`, in {bits}",
            "",
            *table("", *columns, "without an end"),
            *rows,
            "",
            "Largest difference of a logit between merged weights and base + adapter, both in 16 bits: "
            + ", ".join(
                f"{apart:.3f} computed in {dtype} (the largest logit is {largest:.1f})"
                for dtype, (apart, largest) in logits.items()
            )
            + ".",
        ]
    write(DOCS / "bench-export.md", "A run beside its exports", "export", lines)


if __name__ == "__main__":
    main()
