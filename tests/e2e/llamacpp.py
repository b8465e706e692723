"""Run by another Python, in which llama-cpp-python is installed: asks a GGUF file what stands in JSON on stdin."""

import json
import sys

from llama_cpp import Llama

asked = json.load(sys.stdin)
model = Llama(asked["file"], n_ctx=1024, n_threads=1, verbose=False)
ids = [model.tokenize(text.encode(), add_bos=False, special=True) for text in asked["texts"]]
# By the chat template and the end tokens in the file.
chats = [model.create_chat_completion(messages, temperature=0, max_tokens=256) for messages in asked["chats"]]
replies = [(chat["choices"][0]["message"]["content"], chat["choices"][0]["finish_reason"]) for chat in chats]
json.dump({"ids": ids, "replies": replies}, sys.stdout)
