"""What no plan can reach is said before calibration, by the shapes of the matrices alone."""

import pytest

from sieve.compression.plan import Plan
from sieve.errors import InputError
from sieve.models.linears import prunable
from sieve.models.matrix import DENSE
from sieve.searchers.algorithms.base import SEARCHERS, searcher_named
from sieve.searchers.config import Options
from sieve.searchers.genome import LEVELS, Genome
from sieve.searchers.reach import STEPS, largest_ranks, require_plans
from sieve.searchers.run import run_search
from tests.sieve.searchers.engine.test_engine import svd_factors
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 (fixtures)
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--kept 0.01", "no plan keeps 1.0% of the prunable parameters; the smallest keeps"),
        ("--kept 0.01 --search uniform", "raise --kept or lower --rank-multiple"),
        ("--kept 0.01 --search ga --granularity block", "raise --kept"),
        ("--kept 0.01 --search ga --paper", "raise --kept"),
        ("--kept 0.02 --objective bytes", "of the prunable bytes"),
        ("--kept 0.01 --shared-input", "raise --kept"),
        ("--kept 0.01 --format plain", "raise --kept"),
        ("--kept 0.3 --method wanda --pattern 2:4", "the smallest keeps 50.0%"),
        ("--method wanda --pattern 2:4 --kept 0.001 --search ga", "the smallest keeps 50.0%"),
        ("--rank-multiple 64", "choose a smaller --rank-multiple"),
        ("--rank-multiple 64 --search uniform --kept 0.5", "choose a smaller --rank-multiple"),
        ("--rank-multiple 64 --objective latency", "choose a smaller --rank-multiple"),
    ],
)
def test_said_before_calibration(run, world, tmp_path, monkeypatch, arguments, words):  # noqa: F811
    def late(*_, **__):
        raise AssertionError("it went on to calibrate")

    monkeypatch.setattr("sieve.run.calibrated.calibrate", late)
    code, _, err = run(*options(world, tmp_path / "x"), *arguments.split(), "--quiet")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("search", ["uniform", "budget", "ga"])
@pytest.mark.parametrize("kept", [0.05, 0.1, 0.16, 0.2, 0.3])
def test_it_says_what_the_search_would_say(world, search, kept):
    """Nothing that a search reaches is refused, and nothing else is let through."""
    model = tiny_model("llama")
    few = {"generations": 1, "population": 4, "offspring": 4} if search == "ga" else {}
    asked = Options(kept=kept, bottlenecks=0, **few)
    try:
        require_plans(prunable(model), SEARCHERS[search], asked, 4, model.dtype)
        reachable = True
    except InputError:
        reachable = False

    def searched():
        return run_search(
            model, tiny_tokenizer(), svd_factors(model), world.task, search=search, rank_multiple=4,
            allow_no_signal=True, **vars(asked),
        )  # fmt: skip

    if reachable:
        result = searched()
        assert 1 - result.plan.prunable_removed(result.matrices) <= kept
    else:
        with pytest.raises(InputError, match="no plan keeps"):
            searched()


@pytest.mark.parametrize("pivoted", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
def test_no_plan_asks_for_a_larger_rank(pivoted, multiple):
    matrices = prunable(tiny_model("llama"), pivoted)
    largest = largest_ranks(matrices, searcher_named("budget"), multiple)
    levels = Genome(matrices, LEVELS, multiple)
    asked = {name: {rank for gene in levels.genes for name_, *ranks in zip(gene.names, *gene.levels, strict=True)
                    if name_ == name for rank in ranks} - {DENSE} for name in matrices}  # fmt: skip
    assert largest == {name: max(ranks) for name, ranks in asked.items()}
    # Where all matrices have one rank, plans are of a finer grid.
    every = [Plan.uniform(matrices.values(), step / STEPS, multiple) for step in range(1, STEPS + 1)]
    ranks = {name: {plan.get(name, DENSE) for plan in every} - {DENSE} for name in matrices}
    assert largest_ranks(matrices, searcher_named("uniform"), multiple) == {name: max(ranks[name]) for name in ranks}


def test_a_matrix_that_no_plan_prunes_has_all_ranks():
    matrices = prunable(tiny_model("llama"))
    found = largest_ranks(matrices, searcher_named("budget"), 64)
    assert found == {name: matrix.max_rank for name, matrix in matrices.items()}
