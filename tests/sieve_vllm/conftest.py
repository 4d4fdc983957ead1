"""The plugin is a separate distribution, so its folder must be put on the path."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "sieve-vllm"))


@pytest.fixture
def vllm():
    """vLLM with the plugin, configured for a CPU; without it the test is skipped."""
    vllm_config = pytest.importorskip("vllm.config")
    import sieve_vllm

    sieve_vllm.register()
    with vllm_config.set_current_vllm_config(vllm_config.VllmConfig(device_config=vllm_config.DeviceConfig("cpu"))):
        yield
