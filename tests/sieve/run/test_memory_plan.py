"""What a run is said to need, against what it takes."""

import pytest
import torch

from sieve.calibration.collect import calibrate
from sieve.compression.low_rank.share_inputs import share_inputs_
from sieve.compression.masks.mask import mask
from sieve.errors import InputError
from sieve.healing.config import HealingConfig
from sieve.models.loading import context_length, load_model, shapes_of
from sieve.models.prunable_model import PrunableModel
from sieve.run import memory_plan as module
from sieve.run.compressed import compressed
from sieve.run.memory import to_bytes
from sieve.run.memory_plan import lengths_of, memory_plan, require_memory
from sieve.run.recipe import Recipe
from sieve.tasks import load_task
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures
from tests.tiny_models import TINY, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


def plan_of(world, name="llama", dtype="float32", **given):
    recipe = Recipe(world.model, world.task, dtype=dtype, **given).check()
    splits = load_task(recipe.task).splits()
    shapes = shapes_of(TINY[name](), dtype, CPU)
    return memory_plan(shapes, recipe, lengths_of(tiny_tokenizer(), splits, context_length(shapes)), "cpu")


def of_tensors(tensors):
    """Bytes of the memory that tensors lie in, counted once."""
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "given",
    [
        {"method": "output_aligned"},
        {"method": "output_aligned", "pivot": False},
        {"method": "loss_aware"},
        {"method": "widths"},
        {"method": "widths", "shared_input": True},
        {"method": "loss_aware", "shared_input": True},
    ],
)
def test_weights_statistics_and_factors_to_the_byte(world, name, given):
    plan = plan_of(world, name, **given)
    model = tiny_model(name)
    assert plan.stages["load"] == {"weights": of_tensors([*model.parameters(), *model.buffers()])}
    if given.get("shared_input"):
        model = share_inputs_(model, given["method"] != "widths", required=False)
    statistics = calibrate(model, tiny_tokenizer(), world.task, 1000, given["method"])
    kept = [*statistics.grams.values(), *statistics.sums.values(), *statistics.importance.values()]
    assert plan.stages["calibrate"]["statistics"] == of_tensors(kept)
    # What the search has of it: factors up to the ranks that it tries, and what they keep of the statistics.
    recipe = Recipe(world.model, world.task, dtype="float32", **given)
    factors = compressed(recipe, PrunableModel(model), statistics)
    made = [one for pair in factors.values() for one in (pair.A, pair.B, pair.gram) if one is not None]
    assert plan.stages["search"]["low-rank pairs"] == of_tensors(made)
    assert "statistics" not in plan.stages["search"]
    assert not statistics.grams


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_masks_to_the_byte(world, method):
    plan = plan_of(world, method=method)
    model = tiny_model("llama")
    masks = mask(model, calibrate(model, tiny_tokenizer(), world.task, 1000, method), method)
    made = [getattr(one, "thresholds", None) for one in masks.values()]
    if method == "sparsegpt":
        made = [one.root for one in masks.values()]
    assert plan.stages["search"]["masks"] == of_tensors(made)


def test_smaller_numbers_and_fewer_stages_need_less(world):
    healed = {"heal": "label-free", "rounds": 2}
    whole = plan_of(world, method="widths", **healed)
    assert list(whole.stages) == ["load", "dense", "calibrate", "project", "search", "heal", "rounds"]
    assert plan_of(world, method="widths", dtype="bfloat16", **healed).peak < whole.peak
    assert plan_of(world, method="widths", memory=0).of("search") < whole.of("search")
    assert "heal" not in plan_of(world, method="widths").stages
    assert plan_of(world, method="output_aligned").of("calibrate") < whole.of("calibrate")


@pytest.mark.parametrize(
    ("size", "number"), [(1000, 1000), ("1000", 1000), ("4GiB", 4 << 30), ("1.5 MB", 1_500_000), ("2KiB", 2048)]
)
def test_sizes(size, number):
    assert to_bytes(size) == number


@pytest.mark.parametrize("size", ["4 gigs", "-1", 0, "0GiB", "GiB", "iB", "4iB"])
def test_bad_sizes_are_refused(world, size):
    with pytest.raises(InputError, match="--memory-limit must be a number of bytes or a size such as 4GiB"):
        Recipe(world.model, world.task, memory_limit=size).check()


def test_a_plan_is_printed_and_one_that_does_not_fit_refused(run, world, tmp_path):  # noqa: F811
    """In one line, before the model is loaded, that says what would fit."""
    code, _, err = run(*options(world, tmp_path / "out"), "--memory-limit", "1GiB")
    assert code == 0, err
    (line,) = [line for line in err.splitlines() if line.startswith("  memory: load ")]
    assert "1.0 GiB allowed (--memory-limit)" in line
    for name in ("dense", "calibrate", "project", "search", "weights", "low-rank pairs"):
        assert name in line
    code, _, err = run(*options(world, tmp_path / "small"), "--memory-limit", "20KiB", "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "in the stage search" in err
    assert "use a smaller model" in err
    assert not list(tmp_path.glob("small*"))


def test_what_would_fit(world, monkeypatch):
    recipe = Recipe(
        world.model, world.task, method="output_aligned", dtype="float32", heal="label-free", memory=1 << 20
    )
    splits, tokenizer = load_task(world.task).splits(), tiny_tokenizer()
    lengths = lengths_of(tokenizer, splits, 256)

    def require(limit, recipe=recipe):
        recipe = Recipe(**{**recipe.to_dict(), "memory_limit": limit})
        return require_memory(recipe, lambda dtype: shapes_of(TINY["llama"](), dtype, CPU), lengths, CPU)

    plan = memory_plan(shapes_of(TINY["llama"](), "float32", CPU), recipe, lengths, "cpu")
    assert require(plan.peak).healing == recipe.healing
    with pytest.raises(InputError, match=r"it would fit with --(memory|heal|dtype)"):
        require(plan.peak - 1)
    with pytest.raises(InputError, match=r"even with .* needs .*: use a smaller model"):
        require(1000)
    # Healing that is left to what memory allows is left out, with all that asks for it.
    auto = Recipe(**{**recipe.to_dict(), "heal": "auto", "search": "budget", "unlabelled": "more.jsonl"})
    monkeypatch.setattr(module, "bytes_of_a_parameter", lambda choices: 1 << 20)
    found = require(1 << 28, auto)
    assert found.healing.kind is None
    assert found.check().healing == HealingConfig()


def test_a_model_whose_shapes_do_not_tell_runs_all_the_same(world):
    recipe = Recipe(world.model, world.task)

    def broken(dtype):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    assert require_memory(recipe, broken, module.Lengths(10, 10, 0.1, 5), CPU) is recipe


def test_shapes_are_those_of_the_loaded_model(world):
    model, _ = load_model(world.model, "bfloat16")
    shapes = shapes_of(model.config, "auto", CPU)
    assert {name: (one.shape, one.dtype) for name, one in model.state_dict().items()} == {
        name: (one.shape, one.dtype) for name, one in shapes.state_dict().items()
    }
    assert PrunableModel(shapes).matrices() == PrunableModel(model).matrices()
    assert PrunableModel(shapes).input_groups == PrunableModel(model).input_groups


def test_a_limit_holds_on_a_gpu(world, monkeypatch):
    """What is free there decides, unless the user says how much; torch is told of it."""
    told = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: told.append(part))
    lengths, gpu = module.Lengths(30, 100, 0.2, 50), torch.device("cuda", 0)

    def require(**given):
        recipe = Recipe(world.model, world.task, method="output_aligned", **given)
        return require_memory(recipe, lambda dtype: shapes_of(TINY["llama"](), dtype, gpu), lengths, gpu)

    require()
    assert told == []
    require(memory_limit="4GiB")
    assert told == [0.5]
    require(memory_limit="16GiB")
    assert told == [0.5, 1.0]
    with pytest.raises(InputError, match=r"and 2\.0 GiB are allowed \(--memory-limit\): it would fit with --memory 0"):
        require(memory_limit="2GiB", search="ga")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 8 << 30))
    with pytest.raises(InputError, match=r"1\.0 MiB are free: .*: --memory-limit SIZE overrules what is free$"):
        require()
    # The user knows better.
    require(memory_limit="4GiB")
