"""The types in which a loaded model computes, and the device that it lies on."""

import copy
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Params4bit
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from yi_tune.engine import assistant
from yi_tune.files import DATA

NANO = {"model_name_or_path": str(DATA / "nano"), "template": "yi"}


@pytest.mark.parametrize("bits", [{}, {"quantization_bit": 4}])
def test_all_that_is_not_quantised_has_the_type_that_is_asked_for(bits: dict[str, int]) -> None:
    model = assistant.load_assistant(NANO | bits | {"infer_dtype": "float32"}).model
    parameters = list(model.parameters())
    assert {p.dtype for p in parameters if not isinstance(p, Params4bit)} == {torch.float32}
    assert any(isinstance(p, Params4bit) for p in parameters) == bool(bits)


def test_model_lies_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-Factory would have "auto" here, which puts what a GPU does not hold on the CPU."""
    maps = []

    def load_model(tokenizer: Any, model_args: Any, finetuning_args: Any) -> None:
        maps.append(model_args.device_map)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(assistant, "load_model", load_model)
    with pytest.raises(RuntimeError):
        assistant.load_assistant(NANO)
    assert maps == [{"": assistant.get_current_device()}]


def test_fp16_training_passes_on_fp16() -> None:
    """A base in bf16 beside an adapter in fp16 makes float32 of the hidden states."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    base = LlamaForCausalLM(config).to(torch.bfloat16)
    model: Any = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    cast: Any = copy.deepcopy(model)
    assistant.cast_frozen(cast, torch.float16)
    types = []
    for one in (model, cast):
        with torch.autocast("cpu", torch.float16):
            hidden = one(input_ids=torch.ones(1, 4, dtype=torch.long), output_hidden_states=True).hidden_states
        types.append({state.dtype for state in hidden[1:-1]})
    assert types == [{torch.float32}, {torch.float16}]
    assert {p.dtype for p in cast.parameters() if p.requires_grad} == {torch.float32}


def test_flash_attention_takes_a_model_without_attention_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5.6.0 does not: `flash_attn: fa2` fails there in the first step."""
    from transformers.integrations import flash_attention

    called = []
    monkeypatch.setattr(flash_attention, "_flash_attention_forward", lambda *args, **named: called.append(args))
    module: Any = torch.nn.Module()
    module.config, module.is_causal = LlamaConfig(attn_implementation="flash_attention_2"), True
    states = torch.zeros(1, 2, 4, 8, dtype=torch.bfloat16)
    flash_attention.flash_attention_forward(module, states, states, states, None)
    assert called
