"""Every operator of the registry on this machine, beside the library, taking turns in one run.

python -m pytest bench/test_lowrank.py --benchmark-only -s; `python -m bench` measures more shapes and writes a table.
"""

import pytest
import torch

from bench.__main__ import measure
from bench.operators import OPERATORS
from bench.shapes import Cell

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYERS = [("smollm2-135m", "q"), ("smollm2-135m", "gate"), ("llama-3-8b", "gate")]


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize(("model", "matrix"), LAYERS)
@pytest.mark.parametrize("operator", ["lowrank_linear", "lowrank_swiglu"])
def test_half_the_parameters(benchmark, operator, model, matrix, rows, capsys):
    """In bfloat16 at half of the dense layer's parameters: times relative to each of the others."""
    cell = Cell(model, matrix, rows, 0.5, torch.bfloat16)
    ours, *others = measure(operator, cell, DEVICE, 15, compiled=False)
    with capsys.disabled():
        for other in (row for row in others if row["mode"] == ours["mode"]):
            ratio = ours["ms"] / other["ms"]
            benchmark.extra_info[f"ours / {other['contender']}"] = ratio
            layer = f"{model} {matrix}, {rows} rows"
            print(f"\n{operator} / {other['contender']}, {layer}: {ours['ms']:.3f} ms, {ratio:.3f} ×", end="")
    benchmark(OPERATORS[operator](cell, DEVICE)[0].run)
