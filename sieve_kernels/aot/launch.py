"""Launches for GPUs that this machine lacks: what launchers pass to Triton, and whether Triton's launcher accepts it.

A launcher runs on tensors without memory while Triton is told that a device of the target is active; its hook receives
each launch before anything is compiled. The compiler does not run the code that unpacks a launch's arguments, and the
interpreter has no such code: without this check, arguments that it refuses would fail only on a GPU.

python -m sieve_kernels.aot.launch prints, as JSON, how many launches were checked and what was refused.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import JITFunction, driver

from sieve_kernels.aot.targets import TARGETS, Target
from sieve_kernels.core import device
from sieve_kernels.core.cases import CASES, Case
from sieve_kernels.core.plans import Plans
from sieve_kernels.core.problems import DTYPES, PROBLEMS, Problem

Signature = dict[str, object]
"""Type of every argument by its name, as Triton writes it: "*bf16", "i32", "constexpr", tuples of them, …"""


@dataclass(frozen=True)
class LaunchRecord:
    """A launch with its bound arguments: everything that a compilation needs."""

    kernel: JITFunction
    signature: Signature
    constants: dict
    attributes: dict
    options: dict


def launches(case: Case, problem: Problem, target: Target) -> list[LaunchRecord]:
    """What `case` launches for `problem` on `target`, in order."""

    def make(*sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype or problem.dtype, device="meta")

    with pretended(target) as found:
        case.launch(make, problem)
    return found


def gpu_target(target: Target) -> GPUTarget:
    return GPUTarget(target.backend, target.arch, target.warp_size)


@contextmanager
def pretended(target: Target) -> Iterator[list[LaunchRecord]]:
    """Within, Triton and the launchers see a device of `target`; launches are recorded and do not run."""
    found: list[LaunchRecord] = []

    def note(*, fn, compile, **_) -> bool:
        options = _tuples(json.loads(compile["specialization_data"])["options"])
        attributes = compile["configs"][0]
        found.append(LaunchRecord(fn.jit_function, compile["signature"], compile["constants"], attributes, options))
        return True  # handled: nothing is compiled or launched

    has_descriptors = target.backend == "cuda" and target.arch >= 90
    properties = device.Properties(target.name, target.num_sms, target.shared_block, has_descriptors)
    # Triton keeps compiled kernels by device: a target is a device of its own.
    active = SimpleNamespace(
        get_current_target=lambda: gpu_target(target),
        get_current_device=lambda: target.name,
        get_current_stream=lambda device: 0,
    )
    with ExitStack() as stack:
        stack.enter_context(patch.object(device, "properties", lambda _: properties))
        stack.enter_context(patch.object(torch.version, "hip", "6" if target.backend == "hip" else None))
        stack.enter_context(patch.object(Plans, "__call__", unplanned))
        stack.enter_context(patch.object(knobs.runtime, "jit_cache_hook", note))
        stack.enter_context(patch.object(driver, "_active", active))
        # Plans for one target are wrong for another.
        stack.enter_context(patch.object(Plans, "_remember", lambda plans, kind, run: run))
        yield found


def unplanned(plans: Plans, *arguments):
    """A call without cached plans: plans depend on the device, which changes here."""
    return plans.prepare(*arguments)(*arguments)


def _tuples(value):
    """Lists from JSON, turned back into tuples."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def refusal(signature: Signature, constants: dict, backend: str = "cuda") -> str | None:
    """Why a version of Triton refuses to launch with these arguments; None if all accept them.

    For other versions a rule decides; for the installed one its own code does, as far as it needs no GPU.
    """
    for name, kind in signature.items():
        if isinstance(kind, tuple) and any(map(_is_descriptor, _leaves(kind))):
            return f"{name} is a tuple that holds a tensor descriptor, which Triton 3.6 cannot launch"
    if backend != "cuda":
        return None
    # The compiler's record per TMA descriptor; only the number of records matters here.
    descriptors = [{} for kind in _leaves(tuple(signature.values())) if _is_descriptor(kind)]
    try:
        if hasattr(nvidia, "make_launcher"):  # up to 3.6: C source that reads the arguments one by one
            nvidia.make_launcher(constants, signature, descriptors)
        else:
            expanded = nvidia.expand_signature(signature.values(), descriptors, "nvTmaDesc")
            for kind in _leaves(tuple(expanded)):
                if kind != "constexpr":
                    nvidia.ty_to_cpp(kind)
    except (AssertionError, KeyError, TypeError) as error:
        return f"the installed Triton's launcher refuses {signature}: {error!r}"
    return None


def _is_descriptor(kind: object) -> bool:
    return isinstance(kind, str) and kind.startswith("tensordesc")


def _leaves(kind: object) -> list[object]:
    return [leaf for part in kind for leaf in _leaves(part)] if isinstance(kind, tuple) else [kind]


def check(target: Target) -> tuple[int, list[str]]:
    """The number of launches of all cases on `target`, and the refusals, in words."""
    count, refused = 0, []
    for case in CASES:
        for dtype in case.dtypes:
            for shape, problem in case.problems(PROBLEMS, dtype).items():
                if shape in DTYPES[dtype]:
                    for record in launches(case, problem, target):
                        count += 1
                        why = refusal(record.signature, record.constants, target.backend)
                        if why:
                            refused.append(f"{case.name} {shape} {dtype} {target.name} {record.kernel.__name__}: {why}")
    return count, refused


if __name__ == "__main__":
    total, faults = 0, []
    for one in TARGETS.values():
        count, refused = check(one)
        total += count
        faults += refused
    json.dump({"launches": total, "refused": faults}, sys.stdout)
