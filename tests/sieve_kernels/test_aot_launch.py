"""What launchers hand to Triton can be launched: shown by the launcher's own code, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

from sieve_kernels.aot.launch import refusal

DESCRIPTOR = "tensordesc<bf16[128, 64]>"


def test_every_launch_of_every_case_and_target():
    """In a process in which Triton does not interpret, for there only are launches to record."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sieve_kernels.aot.launch"]
    found = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    assert found["launches"] > 1000
    assert found["refused"] == []


@pytest.mark.parametrize("kind", [DESCRIPTOR, "*bf16", "i32", "constexpr", ("*bf16", ("i32", "constexpr"), "fp32")])
def test_what_can_be_launched(kind):
    assert refusal({"a": kind, "size": "i32"}, {}) is None


def test_a_descriptor_in_a_tuple_is_refused():
    """The interpreter and the compiler take it; the launcher of Triton 3.6 ends in an AssertionError."""
    for kind in ((DESCRIPTOR,), ("i32", ("*bf16", DESCRIPTOR))):
        assert refusal({"size": "i32", "a": kind}, {}).startswith("a is a tuple that holds a tensor descriptor")


def test_a_type_that_the_launcher_does_not_know_is_refused():
    assert "launcher refuses" in refusal({"a": "bf17"}, {})
