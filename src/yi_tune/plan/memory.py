"""How much memory a training run takes, from the model's shape and the config: a formula, held against measurements.

docs/memory.md has estimate beside measurement on a CPU (bench/memory.py). Not measured yet on a GPU.
"""

from dataclasses import dataclass
from typing import Literal

from yi_tune.config import Config
from yi_tune.models import Shape

Device = Literal["cuda", "cpu"]

# Bits of a quantised weight. 4: with double quantisation an 8-bit scale for 64 weights, and a 32-bit scale for 256
# of these scales (QLoRA, arXiv 2305.14314, section 3; bitsandbytes' block sizes). 8: LLM.int8's scale is one a row.
_BITS = {4: 4 + 8 / 64 + 32 / (64 * 256), 8: 8.0}
# What is there before anything is loaded, in bytes. A CPU: Python with torch and LLaMA-Factory, of which 0.4 GB are
# pages of their libraries (docs/memory.md), 0.1 GB more on a CPU with bf16 than on one without. CUDA: its context with
# the kernels' code, about half of it, cuBLAS' workspaces and what the allocator rounds up; not measured yet.
BASELINE: dict[Device, int] = {"cpu": 1_250_000_000, "cuda": 1_000_000_000}
# After training heldout.one_of_each asks 18 questions in a batch, each with 256 tokens at most to be answered in.
_ANSWERS, _ANSWER_TOKENS = 18, 300


@dataclass(frozen=True)
class Estimate:
    """Memory at its peak in bytes, by what takes it."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """What should be free: a quarter more of all but the weights, and none for the model's file.

        Pages of a file are given back when memory is short. Weights are arithmetic. The rest is a model of code that
        may change, and allocators lose some memory between blocks of different sizes (docs.pytorch.org, "CUDA
        semantics", on fragmentation).
        """
        weights = self.parts["weights"] + self.parts["embeddings and head"]
        return weights + (self.total - weights - self.parts["model file"]) * 5 // 4


def estimate(shape: Shape, config: Config, length: int, device: Device) -> Estimate:
    """The peak of a run with this config whose longest row has `length` tokens.

    Reads per_device_train_batch_size, disable_gradient_checkpointing, quantization_bit, finetuning_type, lora_rank,
    lora_target, flash_attn, bf16, fp16 and pure_bf16. With h, q and f for the widths of hidden state, queries and FFN,
    in bytes:

    weights: the layers' linear parts in 4.127 or 8 bits, or 16; trained in full, in 32 and a 16-bit copy for autocast
    model file: on a CPU the linear parts' 16 bits too, pages of the file that stay mapped (seen in RssFile)
    embeddings and head: 16 bits
    trainable: float32, that is 4 for the weight, 4 for its gradient, 8 for Adam's two moments
    activations of a layer, kept for the backward pass, for each token of a micro-batch (padded to its longest row):
      two norms in float32 8h; the inputs of q, k, v and of gate, up 4h; q, k, v (repeated to q's width) and the
      attention's output 8q; SiLU's input and output, up, and their product 8f. After Korthikanti et al., arXiv
      2205.05198, section 4, less what frozen weights, SDPA and no dropout save. PEFT casts to float32 on a CPU, and
      for unquantised weights, so that each linear part keeps an input of its own: 6h + 2q more. Where a CPU trains in
      neither bf16 nor fp16 the casts of autocast go, but none is shared: 28h + 10q + 10f in all. Without SDPA
      (flash_attn: disabled) each head keeps its weights for each token of the row, before and after their cast: 6 (all
      counted on nano with torch.autograd.graph.saved_tensors_hooks)
    activations with gradient checkpointing: the layers' inputs 2h, and one layer while it is computed again
    logits: 12 a token and word: log-softmax, its gradient and that of its input, all float32
    answers: the keys and values of the questions asked after training, where that is more than a step takes. Not what a
      model takes that is loaded anew for them (answering.py), which it only is where there is room
    """
    padded = -(-length // 8) * 8  # as LLaMA-Factory does
    tokens = number(config, "per_device_train_batch_size", 8) * padded
    bits, full = config.get("quantization_bit"), config.get("finetuning_type") == "full"
    rest = shape.parameters - shape.linear_parameters
    if full:
        trained = shape.parameters
        weight_bits = 16.0 if config.get("pure_bf16") else 16.0 + 32
    else:
        trained = _adapter_parameters(shape, config)
        weight_bits = _BITS.get(bits or 0, 16.0)
    numbers = 2 if config.get("pure_bf16") else 4

    h, q, f = shape.hidden, shape.query, shape.ffn
    if device == "cpu" and not any(config.get(key) for key in ("bf16", "fp16", "pure_bf16")):
        token = 28 * h + 10 * q + 10 * f
    else:
        token = 12 * h + 8 * q + 8 * f + (0 if device == "cuda" and bits == 4 else 6 * h + 2 * q)
    if config.get("flash_attn") == "disabled":
        token += 6 * shape.heads * padded
    layer = tokens * token
    # While a layer goes backward: its gradients, about as much as it kept, and a matrix in 16 bits.
    backward = layer + 2 * h * f
    if config.get("disable_gradient_checkpointing"):
        kept = shape.layers * layer
    else:
        kept = shape.layers * tokens * 2 * h
        backward += layer
    kept += tokens * 4 * h
    logits = tokens * shape.vocab * 12
    activations = kept + max(0, backward - logits)
    answers = _ANSWERS * (_ANSWER_TOKENS * shape.layers * 4 * shape.key + 10 * shape.vocab)
    return Estimate(
        {
            "CUDA" if device == "cuda" else "Python and libraries": BASELINE[device],
            "weights": int(shape.linear_parameters * weight_bits / 8),
            # On a CPU the 16-bit weights were read through a mapping of their file, which the head's keeps open.
            "model file": 2 * shape.linear_parameters if device == "cpu" and bits in _BITS and not full else 0,
            "embeddings and head": int(rest * weight_bits / 8) if full else 2 * rest,
            "adapter": 0 if full else trained * numbers,
            "gradients": trained * numbers,
            "optimiser": 2 * trained * numbers,
            "activations": activations,
            "logits": logits,
            "answers": max(0, answers - activations - logits),
        }
    )


def number(config: Config, key: str, default: int) -> int:
    """A whole number of the config, or LLaMA-Factory's default; what is none is for problems() to report."""
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else default


def _adapter_parameters(shape: Shape, config: Config) -> int:
    """A LoRA adapter of rank r has r x (inputs + outputs) parameters a linear part."""
    rank, target = number(config, "lora_rank", 8), config.get("lora_target", "all")
    names = shape.linear if target == "all" else [name.strip() for name in str(target).split(",")]
    # What is no linear part of a layer (a head, say) is left to the margin.
    return shape.layers * rank * sum(sum(shape.linear[name]) for name in names if name in shape.linear)
