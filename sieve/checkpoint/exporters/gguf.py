"""A GGUF file of the dense model in the model's dtype, for llama.cpp and tools based on it."""

from sieve.checkpoint.gguf_file import gguf_exporter

EXPORTER = gguf_exporter("a GGUF file of the dense model, for llama.cpp and others")
