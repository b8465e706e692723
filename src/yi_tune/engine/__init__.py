"""The only part of yi-tune that imports torch, transformers, peft or LLaMA-Factory.

Importing a module of it takes seconds: commands do so once their arguments are known to be good.
"""

import gc

# After every 700 new objects, as by default, the search for garbage takes a seventh of the time of these imports.
gc.set_threshold(10_000)
