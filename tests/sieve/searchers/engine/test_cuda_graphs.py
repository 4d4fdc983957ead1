"""Replayed blocks against called ones: the same bits, whichever candidates are dense."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from sieve.evaluation.scoring import prepare
from sieve.models.blockwise import BlockwiseRunner
from sieve.models.decoder import decoder_blocks
from sieve.models.linears import prunable
from sieve.models.loading import evaluating
from sieve.nn.elastic_linear import ElasticLinear
from sieve.searchers.engine import local
from sieve.searchers.engine.config import EngineConfig
from sieve.searchers.engine.cuda_graphs import CudaRecorder, GraphedBlocks
from sieve.searchers.engine.engine import split_into_rungs
from tests.sieve.searchers.engine.test_engine import (
    EXAMPLES,
    TASK,
    TOKENIZER,
    deep_model,
    drawn_plans,
    engine_of,
    svd_factors,
)
from tests.tiny_models import tiny_model, tiny_tokens

P = 4


class Launches(TorchDispatchMode):
    """What torch is asked for: operators, numbers, layouts, and which memory: its address, or which result it was."""

    def __init__(self):
        super().__init__()
        self.log, self._outside, self._made, self._alive = [], set(), {}, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.log.append((str(function), tree_map_only(torch.Tensor, self._description, [args, kwargs])))
        assert "_local_scalar_dense" not in str(function), "the host would wait"
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._keep, result)
        return result

    def _description(self, tensor):
        memory = tensor.untyped_storage().data_ptr()
        if memory not in self._made:
            self._outside.add(memory)
        where = self._made.get(memory, ("address", memory))
        return where, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype

    def _keep(self, tensor):
        self._alive.append(tensor)  # so that no later result has its address
        memory = tensor.untyped_storage().data_ptr()
        if memory not in self._outside:
            self._made.setdefault(memory, ("result", len(self._made)))


class Recorder:
    """Replays by doing the work again, which must ask for what it asked for when it was recorded."""

    def __init__(self):
        self.records = self.replays = 0

    def __call__(self, work):
        work()
        recorded = self._launches(work)
        self.records += 1

        def replay():
            self.replays += 1
            assert self._launches(work) == recorded

        return replay

    def _launches(self, work):
        with Launches() as launches:
            work()
        return launches.log


def mixed_plans(model, number=11):
    """Candidates that share beginnings and leave other matrices dense each; one leaves all, one none."""
    draw = np.random.default_rng(1)
    plans = [
        {name: rank for name, rank in plan.items() if draw.random() < 0.6} for plan in drawn_plans(model, number - 2)
    ]
    lean = {name: min(4 + 4 * (place % 3), each.max_rank) for place, (name, each) in enumerate(prunable(model).items())}
    return [*plans, {}, lean]


def same_bits(one, two):
    return np.array_equal(one.loglik, two.loglik) and np.array_equal(one.score, two.score)


@contextmanager
def signatures_of_passes(model):
    """Every different (rows, tokens, cached tokens or None) that the model reads."""
    signatures = set()

    def note(module, args, kwargs):
        cache = kwargs.get("past_key_values")
        signatures.add((*kwargs["input_ids"].shape, None if cache is None else cache.get_seq_length()))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield signatures
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "opt", "gpt_neox"])
def test_scores_are_the_same_bits(name):
    """Batches of different ranks and dense matrices; one graph for each block and signature of a pass."""
    model = tiny_model(name)
    plans, recorder = mixed_plans(model), Recorder()
    options = {"examples": EXAMPLES[:12], "number": 1, "candidate_batch_size": P, "layers": False}
    with engine_of(model, **options) as engine, signatures_of_passes(model) as signatures:
        want = engine.scores(plans, 0)
        blocks = len(engine.blocks)
    with engine_of(model, recorder=lambda device: recorder, **options) as engine:
        got = engine.scores(plans, 0)
        assert engine._evaluator._graphs is not None
    assert engine._evaluator._graphs is None
    assert all(same_bits(*pair) for pair in zip(want, got, strict=True))
    assert len({signature[:2] for signature in signatures}) > 2
    assert recorder.records == len(signatures) * blocks
    assert recorder.replays >= 2 * recorder.records


def test_from_stored_states_too(monkeypatch):
    """Where batches begin at different blocks."""
    model, run = deep_model(4), BlockwiseRunner.run
    parents, names = mixed_plans(model, 8), list(prunable(model))
    children = [[{n: r for n, r in plan.items() if f".{last}." not in n} for plan in parents[:-2]] for last in (3, 2)]
    scores, starts, recorder = [], set(), Recorder()

    def noted(blocks, evaluation, start=0, *others, **options):
        starts.add(start)
        return run(blocks, evaluation, start, *others, **options)

    monkeypatch.setattr(BlockwiseRunner, "run", noted)
    for options in ({}, {"recorder": lambda device: recorder}):
        with engine_of(model, examples=EXAMPLES[:8], number=1, candidate_batch_size=P, **options) as engine:
            scores.append([one for plans in (parents, *children) for one in engine.scores(plans, 0)])
            replays = recorder.replays
            scores[-1] += engine.scores([dict.fromkeys(names[5:8], 8)], 0)
            assert recorder.replays == replays  # of one candidate alone there are none
    assert {0, 2, 3} <= starts
    assert recorder.replays > recorder.records > 0
    assert all(same_bits(*pair) for pair in zip(*scores, strict=True))


@contextmanager
def population(model, plans):
    """The graphed blocks, their recorder, and the elastic model, set to these plans."""
    recorder = Recorder()
    with svd_factors(model).elastic(model) as elastic, evaluating(model), torch.inference_mode():
        elastic.set_batch(plans)
        yield GraphedBlocks(recorder, decoder_blocks(model)[1], elastic.capture_safe, 1 << 20), recorder, elastic


class Block:
    """The model's first block, called with what its decoder calls it with, and a cache of random keys and values."""

    def __init__(self, model, past=0, rows=P):
        self.module, self.calls = decoder_blocks(model)[1][0], []
        self.module.register_forward_pre_hook(lambda module, *given: self.calls.append(given), with_kwargs=True)
        model(tiny_tokens(rows), use_cache=False)
        self.past, self.rows, (self.args, self.kwargs) = past, rows, self.calls[0]

    def draw(self, seed, **others):
        """New hidden states, and arguments with a new cache."""
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(self.args[0].shape, generator=generator)
        pair = [torch.randn(self.rows, 2, self.past, 8, generator=generator) for _ in range(2)]
        cache = DynamicCache([tuple(pair)] * 2) if self.past else DynamicCache()
        mask = torch.zeros(self.rows, 1, 12, 12 + self.past)
        return (hidden,), {**self.kwargs, "past_key_values": cache, "attention_mask": mask} | others


def calls(graphs, block, draws):
    """Outputs, and the caches' contents, plainly and through the graphs."""
    found = []
    for call_block in (lambda index, forward, args, kwargs: forward(*args, **kwargs), graphs):
        outputs = []
        for args, kwargs in (draw() for draw in draws):
            output = call_block(0, block.module.forward, args, kwargs)
            output = output[0] if isinstance(output, tuple) else output
            args[0].zero_()  # in place, after the call
            cache = kwargs["past_key_values"]
            kept = [] if cache is None else [cache.layers[0].keys, cache.layers[0].values]
            outputs.append([output, *kept])
        found.append(outputs)
    return found


@pytest.mark.parametrize("past", [0, 5])
def test_a_call_leaves_what_the_block_leaves(past):
    """Output and cache, and nothing that a later call overwrites."""
    model = tiny_model("llama")
    with population(model, mixed_plans(model, P)) as (graphs, recorder, _):
        block = Block(model, past)
        want, got = calls(graphs, block, [lambda seed=seed: block.draw(seed) for seed in range(5)])
        assert (recorder.records, recorder.replays) == (1, 4)
    assert got[0][1].shape[-2] == 12 + past
    assert all(torch.equal(*pair) for one, two in zip(want, got, strict=True) for pair in zip(one, two, strict=True))


def test_inputs_that_are_many_in_one_place():
    """A mask that is expanded stays so; another layout is another signature."""
    model = tiny_model("llama")
    with population(model, mixed_plans(model, P)) as (graphs, recorder, _):
        block = Block(model)
        masks = [torch.zeros(1, 1, 12, 12).expand(P, 1, 12, 12), torch.zeros(P, 1, 12, 12)] * 3
        want, got = calls(graphs, block, [lambda mask=mask: block.draw(0, attention_mask=mask) for mask in masks])
        assert (recorder.records, recorder.replays) == (2, 4)
    assert all(torch.equal(*pair) for one, two in zip(want, got, strict=True) for pair in zip(one, two, strict=True))


class Unknown(DynamicCache):
    """Nobody knows what it does."""


def windows():
    """A cache that keeps no more than so many tokens."""
    cache = DynamicCache()
    cache.layers = [DynamicSlidingWindowLayer(64)]
    return cache


@pytest.mark.parametrize("case", ["object", "cache", "layer", "device", "hook", "large", "many", "buffers", "broken"])
def test_what_cannot_be_recorded_is_called(case):
    model = tiny_model("llama")
    with population(model, mixed_plans(model, P)) as (graphs, recorder, _):
        block = Block(model)
        others = {
            "object": lambda: {"thing": object()},
            "cache": lambda: {"past_key_values": Unknown()},
            "layer": lambda: {"past_key_values": windows()},
            "device": lambda: {"place": torch.empty(1, device="meta")},
        }.get(case, dict)
        hooked = []
        if case == "hook":
            block.module.mlp.act_fn.register_forward_hook(lambda *given: hooked.append(given))
        graphs._max_cells = P * 12 - 1 if case == "large" else graphs._max_cells
        graphs._max_signatures = 0 if case == "many" else graphs._max_signatures
        graphs._buffer_bytes = 1 << 14 if case == "buffers" else graphs._buffer_bytes
        if case == "broken":
            graphs._recorder = lambda work: (_ for _ in ()).throw(RuntimeError("not while capturing"))
        with pytest.warns(UserWarning, match="not while capturing") if case == "broken" else nullcontext():
            for _ in range(3):
                args, kwargs = block.draw(0, **others())
                output = graphs(0, block.module.forward, args, kwargs)
                args, kwargs = block.draw(0, **others())
                assert torch.equal(output, block.module(*args, **kwargs))
        assert recorder.records == 0
        assert len(hooked) == 6 * (case == "hook")


def test_other_numbers_are_other_graphs():
    """Also of arguments that are no tensors, True and 1 being two."""
    model = tiny_model("llama")
    with population(model, mixed_plans(model, P)) as (graphs, recorder, _):
        block = Block(model)
        for extra in (1, True, "1", None, (1, 2), {"a": 1}) * 3:
            graphs(0, block.module.forward, *block.draw(0, extra=extra))
        assert (recorder.records, recorder.replays) == (6, 12)


def test_what_is_recorded_would_tell_if_launches_differed():
    """The check itself: without `capture_safe`, a batch with other dense matrices is not a replay."""
    model = tiny_model("llama")
    one, two = mixed_plans(model, P), mixed_plans(model, 2 * P)[:P]
    with population(model, one) as (graphs, _, elastic):
        graphs._capture_safe = nullcontext
        block = Block(model)
        for _ in range(2):
            graphs(0, block.module.forward, *block.draw(0))
        elastic.set_batch(two)
        with pytest.raises(AssertionError):
            graphs(0, block.module.forward, *block.draw(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("dense", [[], [1], [0, 2, 3], [0, 1, 2, 3]])
def test_dense_products_of_all_candidates_are_each_ones_own(dtype, tokens, dense):
    """Also of sizes at which a product of all rows at once is rounded otherwise."""
    generator = torch.Generator().manual_seed(tokens)
    x, A, B = (torch.randn(size, generator=generator).to(dtype) for size in [(P, tokens, 576), (64, 576), (1536, 64)])
    layer = ElasticLinear(torch.nn.Linear(576, 1536, dtype=dtype), A, B)
    mask = torch.tensor([candidate in dense for candidate in range(P)])
    layer.set_candidates(torch.tensor([64, 8, 24, 1]).masked_fill(mask, 1), dense, mask)
    with torch.inference_mode():
        want = layer(x)
        layer.capture_safe = True
        assert torch.equal(layer(x), want)


def test_graphs_are_for_candidate_batches():
    model = tiny_model("llama")
    rungs = [prepare(model, TOKENIZER, TASK, rung, 256) for rung in split_into_rungs(EXAMPLES, 1)]
    with svd_factors(model).elastic(model) as elastic:
        given = model, elastic, prunable(model), rungs, EngineConfig()
        assert local.Evaluator(*given, candidate_batch_size=1, recorder=CudaRecorder).recorder is None
        assert local.Evaluator(*given, candidate_batch_size=2, recorder=CudaRecorder).recorder is CudaRecorder
        assert local.Evaluator(*given, candidate_batch_size=2).recorder is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_on_a_gpu(name, monkeypatch):
    model = tiny_model(name).to("cuda")
    plans, replays = mixed_plans(model), []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph))[1])
    with engine_of(model, candidate_batch_size=P) as engine:
        want = [engine.scores(plans, rung) for rung in range(2)]
    with engine_of(model, candidate_batch_size=P, recorder=CudaRecorder) as engine:
        got = [engine.scores(plans, rung) for rung in range(2)]
    assert replays
    for one, two in zip([*want[0], *want[1]], [*got[0], *got[1]], strict=True):
        assert np.allclose(one.loglik, two.loglik, rtol=0, atol=1e-4)
