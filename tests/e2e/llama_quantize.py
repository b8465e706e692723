"""llama-quantize FROM TO KIND by llama-cpp-python, which has that program's function, but not the program."""

import ctypes
import sys

import llama_cpp

_, source, target, kind = sys.argv
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)))
