"""A device that fails in the middle of a run: one line that names the stage, and a run that can be resumed."""

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel

from sieve.errors import DeviceError
from sieve.run.stages import Stages
from sieve.utils.devices import device_error
from tests.sieve.run.test_resume import arguments, result
from tests.sieve.test_cli import own_cache, run  # noqa: F401 - fixtures

ILLEGAL = torch.AcceleratorError(
    "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"
)
NONE_LEFT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def failing(monkeypatch, when, error):
    """Inside, passes of the decoder raise the error wherever `when` says so."""
    forward = LlamaModel.forward

    def broken(*args, **kwargs):
        if when():
            raise error
        return forward(*args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", broken)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "out"


@pytest.mark.parametrize(("error", "words"), [(ILLEGAL, "the device failed"), (NONE_LEFT, "not enough memory")])
def test_in_the_middle_of_a_search(run, world, whole, tmp_path, monkeypatch, error, words):  # noqa: F811
    """The journal is whole, and the resumed run comes to the result of one that was not disturbed."""
    if not whole.exists():
        assert run(*arguments(world, whole), "--quiet")[0] == 0
    output = tmp_path / "out"
    journal = tmp_path / "out.unfinished" / "journal.txt"
    with monkeypatch.context() as patched:
        failing(patched, lambda: journal.exists() and journal.read_bytes().count(b"\n") > 6, error)
        code, _, err = run(*arguments(world, output))
    assert code == DeviceError.exit_code == 7
    (last,) = [line for line in err.splitlines() if line.startswith("sieve: ")]
    assert words in last
    assert "in the stage search" in last
    assert f"--resume {output}" in err
    assert "Traceback" not in err
    kept = journal.read_bytes()
    code, _, err = run("prune", "--resume", output, "--quiet")
    assert code == 0, err
    assert kept.count(b"\n") == 7
    assert result(output) == result(whole)


def test_before_there_is_a_result(run, world, tmp_path, monkeypatch):  # noqa: F811
    """Nothing is left, and every command that runs a model says it in one line."""
    failing(monkeypatch, lambda: True, ILLEGAL)
    code, _, err = run(*arguments(world, tmp_path / "out"), "--quiet")
    assert (code, err.count("\n")) == (7, 1)
    assert "in the stage load (CUDA error: an illegal memory access" in err
    assert not list(tmp_path.glob("out*"))
    code, _, err = run("eval", world.model, "--task", world.task, "--quiet")
    assert (code, err.count("\n")) == (7, 1)
    assert "the device failed (CUDA error" in err


@pytest.mark.parametrize(
    ("stage", "advice"),
    [("calibrate", "--method output_aligned"), ("search", "--memory"), ("heal", "--heal lora"), ("test", "--dtype")],
)
def test_what_lowers_the_need_of_a_stage(stage, advice):
    stages = Stages()
    with pytest.raises(DeviceError, match=advice) as raised, stages(stage):
        raise NONE_LEFT
    assert raised.value.__cause__ is NONE_LEFT


def cpu_allocator():
    try:
        torch.empty(1 << 50)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (cpu_allocator(), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "not enough memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "not enough memory",
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), "failed"),
        (RuntimeError("Triton Error [CUDA]: device-side assert triggered"), "failed"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("CUDA error"), None),
    ],
)
def test_which_errors_are_a_devices(error, told):
    found = device_error(error)
    assert (found is None) == (told is None)
    if found is not None:
        assert told in str(found)
        assert "\n" not in str(found)


def test_a_trial_does_not_take_the_failure_for_a_peculiarity_of_the_model(world, monkeypatch):
    """Shortcuts that are tried where the device fails are not ruled out for the model."""
    from sieve.evaluation.likelihood import EVERYTHING, Continuation
    from sieve.evaluation.shortcuts import verified

    model = LlamaForCausalLM.from_pretrained(world.model)
    calls = iter(range(100))
    failing(monkeypatch, lambda: next(calls) > 5, ILLEGAL)
    with pytest.raises(torch.AcceleratorError):
        verified(model, [[Continuation([5, 6, 7, 8], 2), Continuation([5, 6, 9, 8], 2)]], EVERYTHING)
