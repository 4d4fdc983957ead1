"""A GGUF file of the dense model, for llama.cpp and tools over it, in the dtype that the model has."""

from sieve.checkpoint.gguf_file import gguf_exporter

EXPORTER = gguf_exporter("a GGUF file of the dense model, for llama.cpp and others")
