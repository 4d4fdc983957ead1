"""A GGUF file of the dense model in llama.cpp's 8-bit blocks."""

from sieve.checkpoint.gguf_file import gguf_exporter

EXPORTER = gguf_exporter("the same in 8-bit blocks", "Q8_0")
