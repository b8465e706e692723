"""Run by a Python of whichever transformers: asks the model in a folder, with nothing of yi-tune's, what stands in JSON
on stdin.
"""

import json
import sys

import torch
import transformers

asked = json.load(sys.stdin)
tokenizer = transformers.AutoTokenizer.from_pretrained(asked["folder"])
model = transformers.AutoModelForCausalLM.from_pretrained(asked["folder"]).float().eval()
saved = transformers.AutoConfig.from_pretrained(asked["folder"])
found = {
    "transformers": transformers.__version__,
    "rope_theta": model.model.rotary_emb.inv_freq[1].item() ** (-saved.head_dim / 2),
    "dtype": str(transformers.AutoModelForCausalLM.from_pretrained(asked["folder"], torch_dtype="auto").dtype),
    "texts": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked["texts"]],
    "ids": [],
    "logits": [],
    "replies": [],
}
for chat in asked["chats"]:
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, do_sample=False, max_new_tokens=64)[0]
        found["logits"].append(model(out[None]).logits[0, -1].tolist())
    found["ids"].append(ids[0].tolist())
    found["replies"].append(tokenizer.decode(out[ids.shape[1] :], skip_special_tokens=True).strip())
json.dump(found, sys.stdout)
