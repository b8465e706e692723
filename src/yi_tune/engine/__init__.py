"""The only part of yi-tune that imports torch, transformers, peft or LLaMA-Factory.

Importing a module of it takes seconds: commands do so once their arguments are known to be good.
"""
