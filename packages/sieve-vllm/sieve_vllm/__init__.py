"""vLLM's plugin for models that Sieve pruned: `vllm serve DIR` knows `quant_method: sieve` once this is installed."""


def register() -> None:
    """Entry point of vLLM's general plugins, called in each of its processes."""
    import sieve_vllm.config  # noqa: F401 - importing it registers its class
