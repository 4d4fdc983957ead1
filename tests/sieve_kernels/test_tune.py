"""Measured choices: found by device and shape class, below the override and above the table; never in the way."""

import json
import warnings

import pytest
import torch

from sieve_kernels.autotune import __main__ as tune
from sieve_kernels.autotune import measure
from sieve_kernels.core import decisions, dispatch, library, tuning_cache
from sieve_kernels.lowrank import torch_backend

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """An empty place for the file, read anew; a machine with a compiled library, as far as dispatch knows."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setenv(tuning_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(library, "library", lambda: "a library")
    decisions.forget()
    yield
    decisions.forget()


def entry(**changes) -> dict:
    call = {"operator": "lowrank_linear", "dtype": "bfloat16", "rows": 8, "rank": 4, "implementation": "torch"}
    return call | {"seconds": {"torch": 1.0, "cpp": 2.0}} | changes


def store(*entries: dict) -> None:
    tuning_cache.write(tuning_cache.path(CPU), tuning_cache.device_name(CPU), list(entries))


def choose(rows=8, rank=4, dtype=torch.bfloat16, override=None) -> str:
    rule, _ = dispatch._choose("lowrank_linear", dispatch.Call(CPU, dtype, rows, rank), override)
    return rule.name


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (4096, 4096)])
def test_shape_class(size, expected):
    assert tuning_cache.shape_class(size) == expected


def test_the_measured_choice_holds_for_its_class_only():
    assert choose() == "cpp"
    store(entry())
    decisions.forget()
    assert choose() == choose(rows=5, rank=3) == "torch"
    assert choose(rows=4) == choose(rank=5) == choose(dtype=torch.float32) == "cpp"


GPU = torch.device("cuda", 0)


@pytest.fixture
def shipped(monkeypatch, tmp_path, pretend):
    """A GPU of 132 multiprocessors, and files of three others in the package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(tuning_cache, "SHIPPED", tmp_path / "configs")
    pretend(architecture="sm_90", num_sms=132)
    for name, architecture, num_sms, implementation in (
        ("Far", "sm_90", 78, "torch"),
        ("Near", "sm_90", 130, "triton"),
        ("Other", "sm_80", 132, "torch"),
    ):
        hardware = {"architecture": architecture, "num_sms": num_sms}
        tuning_cache.write(
            tuning_cache.SHIPPED / f"{name}.json", name, [entry(implementation=implementation)], hardware
        )


def choice_of_the_gpu(**changes):
    call = {"operator": "lowrank_linear", "dtype": torch.bfloat16, "rows": 8, "rank": 4} | changes
    return tuning_cache.choice(**call, device=GPU)


def test_the_nearest_gpu_of_its_architecture_serves(shipped):
    found = choice_of_the_gpu()
    assert found == tuning_cache.Choice("triton", f"measured fastest on Near, {tuning_cache.SHIPPED / 'Near.json'}")
    assert choice_of_the_gpu(rows=9) is None


def test_its_own_files_are_above(shipped):
    hardware = {"architecture": "sm_90", "num_sms": 1}
    tuning_cache.write(tuning_cache.SHIPPED / "Card.json", "Card", [entry(implementation="torch")], hardware)
    assert choice_of_the_gpu() == tuning_cache.Choice(
        "torch", f"measured fastest, {tuning_cache.SHIPPED / 'Card.json'}"
    )
    tuning_cache.write(tuning_cache.path(GPU), "Card", [entry(implementation="triton_fused")])
    decisions.forget()
    assert choice_of_the_gpu() == tuning_cache.Choice("triton_fused", f"measured fastest, {tuning_cache.path(GPU)}")


def test_no_measured_choice_where_tuning_is_off(shipped, monkeypatch):
    monkeypatch.setenv(tuning_cache.VARIABLE, "off")
    assert choice_of_the_gpu() is None


def test_shipped_files_can_be_read():
    """Each with what it takes to find the nearest, and implementations that there are."""
    for file in tuning_cache.SHIPPED.glob("*.json"):
        content = json.loads(file.read_text())
        assert content["version"] == tuning_cache.VERSION
        assert content["architecture"]
        assert content["num_sms"] > 0
        for made in content["choices"]:
            assert made["implementation"] in {rule.name for rule in dispatch.TABLE[made["operator"]]}


def test_the_override_is_above():
    store(entry())
    assert choose(override="cpp") == "cpp"


def test_explain_says_where_a_choice_comes_from(monkeypatch):
    store(entry())
    text = dispatch.explain("lowrank_linear", torch.zeros(8, 2, dtype=torch.bfloat16), rank=4)
    assert text.endswith(f"torch (measured fastest, {tuning_cache.path(CPU)})")
    monkeypatch.setenv(tuning_cache.VARIABLE, "off")
    text = dispatch.explain("lowrank_linear", torch.zeros(8, 2, dtype=torch.bfloat16), rank=4)
    assert "cpp (" in text
    assert "measured" not in text


def test_a_choice_that_cannot_serve_is_passed_over():
    store(entry(implementation="triton_fused", rank=1024), entry(implementation="of another version"))
    assert choose() == choose(rank=1000) == "cpp"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ('{"version": 1}', "'device' is missing"),
        ('{"version": 9}', "it has version 9, this package reads 1"),
        ('{"version": 1, "device": "Abacus", "choices": []}', "it was measured on Abacus, this is"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_alone_with_one_warning(content, why):
    tuning_cache.path(CPU).write_text(content)
    with pytest.warns(RuntimeWarning, match=why):
        assert choose() == "cpp"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose() == "cpp"


def test_writing_replaces_the_same_call_and_keeps_the_others():
    store(entry(), entry(rows=16))
    store(entry(implementation="cpp"))
    stored = json.loads(tuning_cache.path(CPU).read_text())
    assert [(e["rows"], e["implementation"]) for e in stored["choices"]] == [(8, "cpp"), (16, "torch")]
    assert stored["device"] == tuning_cache.device_name(CPU)
    assert list(tuning_cache.path(CPU).parent.iterdir()) == [tuning_cache.path(CPU)]


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv(tuning_cache.VARIABLE, str(tmp_path / "mine.json"))
    assert tuning_cache.path(CPU) == tmp_path / "mine.json"
    monkeypatch.setenv(tuning_cache.VARIABLE, "off")
    assert tuning_cache.path(CPU) is None
    monkeypatch.delenv(tuning_cache.VARIABLE)
    monkeypatch.setenv("SIEVE_CACHE", str(tmp_path))
    assert tuning_cache.path(CPU).parent == tmp_path / "kernels"
    if not torch.cuda.is_available():
        assert tuning_cache.path(torch.device("cuda", 0)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert tune.main([]) == 2
    assert "no GPU found" in capsys.readouterr().err
    assert not tuning_cache.path(CPU).exists()


def test_the_slower_default_is_replaced(monkeypatch):
    """Only beyond the margin, so that noise changes nothing."""
    implementations = [
        dispatch.Implementation(name, lambda: lambda *_: None, "", lambda call: True) for name in ("cpp", "torch")
    ]
    monkeypatch.setattr(measure, "candidates", lambda operator, call: implementations)
    for native_time, torch_time, fastest in ((1.0, 0.9, "torch"), (1.0, 0.98, "cpp"), (1.0, 2.0, "cpp")):
        monkeypatch.setattr(measure, "medians", lambda *_, a=native_time, b=torch_time: {"cpp": a, "torch": b})
        case = tune.CASES_BY_OPERATOR["lowrank_linear"]
        (made,) = measure.Measured(CPU, 1).add(case, tune.Problem(3, 8, 8, 4))
        assert (made["implementation"], made["rows"], made["rank"]) == (fastest, 4, 4)


def test_tuning_a_cpu(capsys, monkeypatch):
    """A whole run on two implementations of one operator, whose result dispatch then takes."""
    listed = dispatch.TABLE["lowrank_linear"]
    monkeypatch.setitem(
        dispatch.TABLE,
        "lowrank_linear",
        (
            dispatch.Implementation("torch", lambda: torch_backend.linear, "first", lambda call: True),
            dispatch.Implementation("cpp", lambda: torch_backend.linear, "the same again", lambda call: True),
            *(one for one in listed if one.name.startswith("triton")),
        ),
    )
    options = ["--device", "cpu", "--operators", "lowrank_linear", "--rows", "3", "--ranks", "4", "--size", "16"]
    assert tune.main([*options, "--rounds", "3"]) == 0
    stored = json.loads(tuning_cache.path(CPU).read_text())["choices"]
    assert [(e["operator"], e["rows"], e["rank"], set(e["seconds"])) for e in stored] == [
        ("lowrank_linear", 4, 4, {"torch", "cpp"})
    ]
    assert "1 choices" in capsys.readouterr().out
    assert choose(rows=3) == stored[0]["implementation"]


@pytest.mark.parametrize("content", ["{}", '{"name": "my package"}', "[1]", "not JSON"])
def test_a_file_of_another_kind_is_not_replaced(capsys, monkeypatch, tmp_path, content):
    monkeypatch.setattr(tune, "Measured", lambda *_: pytest.fail("measured first"))
    file = tmp_path / "package.json"
    file.write_text(content)
    assert tune.main(["--device", "cpu", "--output", str(file)]) == 2
    assert "no file of choices" in capsys.readouterr().err
    assert file.read_text() == content


def test_nothing_to_choose(capsys):
    options = ["--device", "cpu", "--operators", "linear", "--dtypes", "float16", "--rows", "64", "--size", "16"]
    assert tune.main(options) == 0
    assert "nothing to choose" in capsys.readouterr().out
