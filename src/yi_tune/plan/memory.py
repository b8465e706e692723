"""The memory that a run takes, and how precisely it answers in what is free.

docs/memory.md holds the formula against measurements on a CPU (bench/memory.py) and against figures that others
published for their GPUs (bench/published.py).
"""

from yi_tune.config import Config
from yi_tune.hardware import Hardware
from yi_tune.language import english
from yi_tune.models import Shape

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
EVAL, NO_CHECKPOINTING = "per_device_eval_batch_size", "disable_gradient_checkpointing"
# Bits of a quantised weight. 4: with double quantisation an 8-bit scale for 64 weights, and a 32-bit scale for 256
# of these scales (QLoRA, arXiv 2305.14314, section 3; bitsandbytes' block sizes). 8: LLM.int8's scale is one a row.
_BITS = {4: 4 + 8 / 64 + 32 / (64 * 256), 8: 8.0}
# Without double quantisation: a 32-bit scale for 64 weights.
_SINGLE = 4 + 32 / 64
# Linear parts that share an input. o_proj's is the attention's output, which is kept anyway.
_SHARED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"down_proj"})
# Bytes before anything is loaded: Python with torch and LLaMA-Factory, or CUDA with its kernels and cuBLAS' workspaces.
_BASELINE = {"cpu": 1_250_000_000, "cuda": 1_000_000_000}
# After training heldout.one_of_each asks 18 questions in a batch, each with 256 tokens at most to be answered in.
_ANSWERS, _ANSWER_TOKENS = 18, 300
# `serve` may have 16 conversations under way, each as long as Yi-1.5 takes one.
_SERVED_TOKENS = 16 * 4096


def estimate(shape: Shape, config: Config, length: int, device: str) -> dict[str, int]:
    """The peak, in bytes by what takes it, of a run whose longest row has `length` tokens, on "cuda" or "cpu".

    With h, q and f for the widths of hidden state, queries and FFN a layer keeps of each token, for the backward pass,
    in bytes: two norms in float32 8h; q, k, v (repeated to q's width) and the attention's output 8q; SiLU's input and
    output, and up 6f (Korthikanti et al., arXiv 2205.05198, section 4, less what frozen weights and SDPA save); and the
    inputs of the parts that LoRA adapts, with all of them 4h + 2f. PEFT casts to float32 on a CPU, and for unquantised
    weights, so that each part keeps an input of its own: 6h + 2q more. So it is with dropout, which keeps a mask too,
    in float32 on a CPU. In float32 nothing is shared. SDPA keeps the mask of a padded batch; without SDPA each head
    keeps its weights for each token of the row, before and after their cast.
    """
    padded = -(-length // 8) * 8  # as LLaMA-Factory does
    tokens = number(config, MICRO, 8) * padded
    bits = config.get("quantization_bit") or 0
    single = bits == 4 and config.get("double_quantization") is False
    linear, rest = shape.linear_parameters, shape.parameters - shape.linear_parameters
    target = str(config.get("lora_target", "all"))
    named = set(shape.linear) if target == "all" else {name.strip() for name in target.split(",")}
    adapted = named & shape.linear.keys()
    adapter = shape.layers * number(config, "lora_rank", 8) * sum(sum(shape.linear[name]) for name in adapted)
    trained = adapter * (2 if config.get("pure_bf16") else 4)
    states = adapter * 2 if "8bit" in str(config.get("optim")) else trained * 2
    # Autocast keeps the adapter in 16 bits too, until the backward pass is done.
    cast = adapter * 2 if config.get("bf16") or config.get("fp16") else 0
    h, q, f = shape.hidden, shape.query, shape.ffn
    inputs = sum(shape.linear[name][0] for name in adapted)
    if device == "cpu" and not any(config.get(key) for key in ("bf16", "fp16", "pure_bf16")):
        token = 28 * h + 10 * q + 10 * f
    elif config.get("lora_dropout"):
        token = 8 * h + 8 * q + 6 * f + (3 if device == "cuda" else 6) * inputs
    elif device == "cpu" or bits != 4:
        token = 8 * h + 8 * q + 6 * f + 2 * inputs
    else:
        token = 8 * h + 8 * q + 6 * f + 2 * sum(shape.linear[min(parts)][0] for parts in _SHARED if parts & adapted)
    if config.get("flash_attn") == "disabled":
        token += 6 * shape.heads * padded
    elif config.get("flash_attn") != "fa2":
        token += 2 * padded
    layer = tokens * token
    # While a layer goes backward: its gradients, about as much as it kept, and a matrix in 16 bits.
    kept, backward = shape.layers * layer, layer + 2 * h * f
    if not config.get(NO_CHECKPOINTING):
        kept, backward = shape.layers * tokens * 2 * h, backward + layer
    # Of each word the loss has its float32 logarithm and two gradients of it at once: 12 bytes. CUDA's allocator still
    # holds the 2 bytes of the 16-bit logit then, a block that is too small for any of these.
    logits = tokens * shape.vocab * (14 if device == "cuda" else 12)
    activations = kept + cast + tokens * 4 * h + max(0, backward - logits)
    answers = _ANSWERS * (_ANSWER_TOKENS * shape.layers * 4 * shape.key + 10 * shape.vocab)
    return {
        "CUDA" if device == "cuda" else english("Python and libraries"): _BASELINE[device],
        english("weights"): int(linear * (_SINGLE if single else _BITS.get(bits, 16.0)) / 8),
        english("model file"): 2 * linear if device == "cpu" and bits in _BITS else 0,
        english("embeddings and head"): 2 * rest,
        english("adapter"): trained,
        english("gradients"): trained,
        english("optimiser"): states,
        english("activations"): activations,
        english("logits"): logits,
        english("answers"): max(0, answers - activations - logits),
    }


def needed(parts: dict[str, int]) -> int:
    """How much should be free: the weights, which are arithmetic, and a quarter more than the rest, for code that may
    change and allocators that lose memory between blocks. The system takes back a file's pages by itself.
    """
    weights = sum(parts.get(name, 0) for name in ("weights", "embeddings and head", "gathered", "loading"))
    return weights + (sum(parts.values()) - weights - parts["model file"]) * 5 // 4


def number(config: Config, key: str, default: int) -> int:
    """A whole number of the config, or LLaMA-Factory's default; the checks of the config report any other value."""
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else default


def answering(shape: Shape | None, hardware: Hardware, bits: int | None) -> Config:
    """The keys of a chat.yaml that are the machine's, for a model that is trained in `bits` (None: unquantised).

    It answers unquantised, as every other program has it that takes the adapter or an export, where free memory holds
    the weights, and a quarter more than the rest, with keys and values of all that `serve` may have under way. A model
    of unknown shape answers as it was trained.
    """
    dtype = hardware.dtypes[0]
    size = 4 if dtype == "float32" else 2
    if bits:
        kept = _SERVED_TOKENS * shape.layers * 2 * size * shape.key if shape else 0
        rest = (_BASELINE["cuda" if hardware.gpu else "cpu"] + kept) * 5 // 4
        if shape is None or shape.parameters * size + rest > hardware.free:
            return {"quantization_bit": bits, "infer_dtype": dtype}
    return {"infer_dtype": dtype}
