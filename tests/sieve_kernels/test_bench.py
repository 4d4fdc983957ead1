"""The benchmark's machinery, on layers small enough for a test: every operator, the table, the plot, the roofline."""

import csv

import pytest
import torch

from bench import __main__ as bench
from bench import devices, shapes
from bench.operators import OPERATORS, WITHOUT_RANK
from bench.shapes import MODELS, Cell, Model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A model of its own, a roofline that need not be measured."""
    monkeypatch.setitem(MODELS, "tiny", Model(48, 48, 32, 80))
    monkeypatch.setattr(devices, "_measured", lambda dtype: devices.Roofline(0.5, 10.0, "measured"))


@pytest.mark.parametrize("operator", OPERATORS)
def test_contenders_compute_the_same_layer(operator):
    """Each within the rounding of its dtype of its float64 result, fast or slow."""
    cell = Cell("tiny", "gate", 20, 0.5, torch.bfloat16)
    rows = bench.measure(operator, cell, CPU, 1, compiled=False)
    assert {row["contender"] for row in rows} >= {"ours", "dense"}
    for row in rows:
        assert 0 <= row["error"] < 0.02
        assert row["ms"] > 0
        assert row["tflops"] > 0
        assert row["gbs"] > 0


def test_the_compiled_contender():
    rows = bench.measure("lowrank_linear", Cell("tiny", "gate", 3, 0.5, torch.float32), CPU, 1, compiled=True)
    assert [row["contender"] for row in rows] == ["ours", "dense", "two", "compiled"]
    assert max(row["error"] for row in rows) < 1e-6


def test_numbers_of_a_row(monkeypatch):
    """Operations and bytes of the pair, over a time that is known."""
    monkeypatch.setattr(bench, "medians", lambda works, device, rounds: dict.fromkeys(works, 0.002))
    cell = Cell("tiny", "gate", 4, 0.5, torch.float32)
    ours, dense, *_ = bench.measure("lowrank_linear", cell, CPU, 1, compiled=False)
    r = cell.rank
    assert (cell.n, cell.m, r) == (48, 80, 16)
    flops, size = 2 * 4 * r * (48 + 80), 4 * (4 * (48 + 80) + r * (48 + 80))
    assert ours["tflops"] == pytest.approx(flops / 2e-3 / 1e12)
    assert ours["gbs"] == pytest.approx(size / 2e-3 / 1e9)
    assert ours["roofline_share"] == pytest.approx(max(flops / 0.5e12, size / 10e9) / 2e-3)
    assert dense["tflops"] == pytest.approx(2 * 4 * 48 * 80 / 2e-3 / 1e12)
    assert ours["speed_over_dense"] == 1


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    table, picture = tmp_path / "bench.csv", tmp_path / "speed.png"
    options = ["--operators", "lowrank_linear", "gram_", "--models", "tiny", "--matrices", "q", "gate", "--no-compile"]
    options += ["--rows", "1", "5", "--kept", "0.25", "0.5", "--rounds", "1", "--dtypes", "float32", "--device", "cpu"]
    assert bench.main([*options, "--output", str(table), "--plot", str(picture)]) == 0
    rows = list(csv.DictReader(table.open()))
    assert tuple(rows[0]) == bench.COLUMNS
    assert len(rows) == 2 * 2 * 2 * 3 + 2 * 2  # (matrices, rows, kept, contenders), and Gram matrices of one input
    assert {row["mode"] for row in rows} == {"eager"}
    assert all(row["device"] and row["torch"] and row["commit"] for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "28 rows in" in capsys.readouterr().out


def test_a_file_of_another_kind_is_not_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("measured first"))
    (tmp_path / "mine.csv").write_text("name,age\nEve,3\n")
    assert bench.main(["--device", "cpu", "--output", str(tmp_path / "mine.csv")]) == 2
    assert "no table of this benchmark" in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_text() == "name,age\nEve,3\n"


@pytest.mark.parametrize("model", list(shapes.MODELS))
@pytest.mark.parametrize("kept", shapes.KEPT)
def test_ranks_keep_the_fraction(model, kept):
    for matrix, (n, m) in MODELS[model].matrices().items():
        cell = Cell(model, matrix, 1, kept, torch.bfloat16)
        assert cell.rank % shapes.MULTIPLE == 0
        assert abs(cell.rank * (n + m) / (n * m) - kept) <= max(shapes.MULTIPLE * (n + m) / (n * m), 1e-9)


def test_every_cell_is_named_once():
    options = bench.parse(["--models", *(name for name in MODELS if name != "tiny")])
    cells = bench.cells(options)
    assert len(set(cells)) == len(cells)
    assert all(cell.kept == options.kept[0] for operator, cell in cells if operator in WITHOUT_RANK)


def test_rooflines_of_known_gpus(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    limit = devices.roofline(gpu, torch.bfloat16)
    assert (limit.tflops, limit.gbs, limit.source) == (989, 3350, "data sheet")
    assert limit.share(989 * 10**12, 1, 2.0) == pytest.approx(0.5)
    assert limit.share(1, 3350 * 10**9, 4.0) == pytest.approx(0.25)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Abacus")
    assert devices.roofline(gpu, torch.bfloat16) is None
