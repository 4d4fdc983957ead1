"""A GGUF file of the dense model in llama.cpp's 4-bit blocks."""

from sieve.checkpoint.gguf_file import gguf_exporter

EXPORTER = gguf_exporter("the same in 4-bit blocks", "Q4_0")
