"""Masks of whole models: what is left is what the scores say, in search and for good, on every architecture."""

import pytest
import torch

from sieve.calibration.collect import collect
from sieve.calibration.statistics import Statistics
from sieve.calibration.text import Sample, batches
from sieve.compression.apply import apply_
from sieve.compression.masks.config import MaskOptions
from sieve.compression.masks.mask import mask
from sieve.compression.masks.methods import MASKING
from sieve.compression.masks.scores import of_weights
from sieve.compression.plan import Plan
from sieve.errors import InputError, NumericsError
from sieve.models.linears import prunable, weight_of
from sieve.models.matrix import DENSE
from sieve.registry import methods
from tests.tiny_models import TINY, tiny_model, tiny_tokens

SCORES = [name for name, method in methods().items() if method.makes is MASKING]

SEQUENCES = [Sample(ids, 20) for ids in tiny_tokens(16, 24).tolist()]
OTHERS = [Sample(ids, 8) for ids in tiny_tokens(12, 30, seed=9).tolist()]


def statistics_of(model, sequences=SEQUENCES) -> Statistics:
    return collect(model, batches(sequences, 512), "input")


def masks_of(model, method="wanda", **options):
    general = statistics_of(model, OTHERS) if options.get("task_aware") else None
    return mask(model, statistics_of(model), method, general, MaskOptions(**options))


@torch.inference_mode()
def logits(model):
    return model(input_ids=tiny_tokens(2, 12, seed=5)).logits


def weights(model):
    return {name: weight_of(model.get_submodule(name)).detach() for name in prunable(model)}


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("name", TINY)
def test_applied_and_sliced_agree(name, method):
    model = tiny_model(name)
    dense, before = logits(model), {key: W.clone() for key, W in weights(model).items()}
    masks = masks_of(model, method)
    matrices = masks.matrices(model)
    plan = Plan.uniform(matrices.values(), 0.6, 4)
    left_alone = next(iter(plan))
    plan[left_alone] = DENSE
    with masks.elastic(model) as elastic, torch.inference_mode():
        assert torch.equal(logits(model), dense)
        elastic.set_plan(plan)
        in_slices = logits(model)
        elastic.set_plan({})
        assert torch.equal(logits(model), dense)
        elastic.set_plan(plan)
    assert torch.equal(logits(model), dense)
    assert apply_(model, masks, plan) is model
    assert torch.allclose(logits(model), in_slices, atol=1e-5)
    assert not torch.allclose(logits(model), dense, atol=1e-2)
    for key, W in weights(model).items():
        matrix, rank = matrices[key], plan[key]
        if key == left_alone:
            assert torch.equal(W, before[key])
            continue
        assert ((W != 0).sum(1) == rank).all()
        assert int((W != 0).sum()) == matrix.size(rank)
        if method != "sparsegpt":
            assert torch.equal(W[W != 0], before[key][W != 0])
    assert torch.equal(masks[key].at(plan[key]), W)  # the masks still know the dense weights


def test_wanda_keeps_what_its_formula_says():
    model = tiny_model("llama")
    name, inputs = "model.layers.1.mlp.down_proj", []
    layer = model.get_submodule(name)
    W = layer.weight.detach().clone()
    handle = layer.register_forward_hook(lambda m, args, output: inputs.append(args[0].reshape(-1, 72)))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids for ids, _ in SEQUENCES]))
    handle.remove()
    scores = W.abs() * inputs[0].norm(dim=0)
    kept = masks_of(model)[name].at(30) != 0
    for row in range(len(W)):
        assert set(kept[row].nonzero().flatten().tolist()) == set(scores[row].topk(30).indices.tolist())


@pytest.mark.parametrize("method", SCORES)
def test_patterns_and_layers_on_a_model(method):
    for pattern, of in (("2:4", 4), ("4:8", 8)):
        model = tiny_model("llama")
        masks = masks_of(model, method, pattern=pattern)
        apply_(model, masks, Plan.uniform(masks.matrices(model).values(), 0.5))
        for W in weights(model).values():
            assert ((W != 0).unflatten(1, (-1, of)).sum(-1) == of // 2).all()
    model = tiny_model("llama")
    masks = masks_of(model, method, compare="layer")
    plan = Plan.uniform(masks.matrices(model).values(), 0.5)
    apply_(model, masks, plan)
    counts = [(W != 0).sum(1) for W in weights(model).values()]
    assert [int(count.sum()) for count in counts] == [plan[n] * len(W) for n, W in weights(model).items()]
    assert any(len(set(count.tolist())) > 1 for count in counts)


def test_rows_that_do_not_divide_stay_dense():
    model = tiny_model("llama")
    for block in model.model.layers:
        block.mlp.gate_proj, block.mlp.up_proj = (torch.nn.Linear(32, 70, bias=False) for _ in range(2))
        block.mlp.down_proj = torch.nn.Linear(70, 32, bias=False)
    masks = masks_of(model, pattern="2:4")
    assert not any("down_proj" in name for name in masks)
    plan = Plan.uniform(masks.matrices(model).values(), 0.5)
    assert plan["model.layers.0.mlp.down_proj"] == DENSE
    apply_(model, masks, plan)
    assert (model.model.layers[0].mlp.down_proj.weight != 0).all()
    with pytest.raises(InputError, match="no scores"):
        apply_(model, masks, {"model.layers.0.mlp.down_proj": 35})


def test_task_aware_masks_lie_between_those_of_either_set():
    """With τ = 1 and nearly all of the weight on one side, the masks are that side's."""
    model = tiny_model("llama")
    task, general = statistics_of(model), statistics_of(model, OTHERS)

    def kept(side, general=None, **options):
        masks = mask(model, side, "wanda", general, MaskOptions(task_aware=general is not None, **options))
        return torch.cat([(masks[name].thresholds <= 12).flatten() for name in masks])

    of_task, of_general = kept(task), kept(general)
    assert (of_task != of_general).float().mean() > 0.02
    for share, side in ((1 - 1e-9, of_task), (1e-9, of_general)):
        assert torch.equal(kept(task, general, tau=1.0, task_share=share), side)
        assert torch.equal(kept(task, general, fusion="concatenate", task_share=share), side)
    fused = kept(task, general)
    assert (fused != of_task).any()
    assert (fused != of_general).any()
    agreed = of_task == of_general
    assert (fused == of_task)[agreed].float().mean() > 0.95


def test_sets_of_very_different_length_weigh_the_same():
    model = tiny_model("llama")
    task, general = statistics_of(model), statistics_of(model, OTHERS)
    longer = Statistics({key: 1000 * gram for key, gram in general.grams.items()}, general.sources,
                        1000 * general.tokens)  # fmt: skip
    for method in ("wanda", "ria", "sparsegpt"):
        one, other = (mask(model, task, method, text, MaskOptions(task_aware=True)) for text in (general, longer))
        for name in one:
            # Sums a thousand times as large are rounded otherwise: a few ties may fall the other way.
            assert ((one[name].at(16) != 0) == (other[name].at(16) != 0)).float().mean() > 0.999


@pytest.mark.parametrize(("times", "noted"), [(4, False), (1000, True), (0.001, True)])
def test_very_different_lengths_are_noted(times, noted, capsys, monkeypatch):
    monkeypatch.setattr("sieve.progress.note", print)
    model = tiny_model("llama")
    task = statistics_of(model)
    general = Statistics(task.grams, task.sources, int(task.tokens * times) or 1)
    mask(model, task, "wanda", general, MaskOptions(task_aware=True))
    assert ("statistics of the smaller set are noisy" in capsys.readouterr().out) == noted


def test_a_fused_projection_is_the_one_matrix_it_is():
    """Rows of qkv_proj compete each for itself, so the mask is that of q, k and v alone."""
    model = tiny_model("phi3")
    masks = masks_of(model)
    name = "model.layers.0.self_attn.qkv_proj"
    channels = statistics_of(model).grams[name].diagonal()
    W = model.get_submodule(name).weight.detach()
    q = of_weights(W[:32], "wanda") * channels
    assert torch.equal(masks[name].at(9)[:32] != 0, q >= q.topk(9).values[:, -1:])


def test_weights_that_layers_share_stay_dense_and_cannot_be_masked_later():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert not [name for name in masks_of(model) if name.endswith("up_proj")]
    separate = tiny_model("llama")
    masks = masks_of(separate)
    separate.model.layers[1].mlp.up_proj.weight = separate.model.layers[0].mlp.up_proj.weight
    before = separate.model.layers[0].self_attn.q_proj.weight.clone()
    with pytest.raises(InputError, match="up_proj"):
        apply_(separate, masks, dict.fromkeys(masks, 8))
    assert torch.equal(separate.model.layers[0].self_attn.q_proj.weight, before)


def test_embeddings_and_head_are_left_alone_and_stay_tied():
    model = tiny_model("llama")
    masks = masks_of(model)
    apply_(model, masks, dict.fromkeys(masks, 8))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.lm_head.weight[1:] != 0).all()  # row 0 is the padding token's


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_the_matrix(value):
    model = tiny_model("llama")
    for side in ("task", "general"):
        measured = {"task": statistics_of(model), "general": statistics_of(model, OTHERS)}
        grams = measured[side].grams
        grams["model.layers.1.mlp.down_proj"][3, 3] = value
        for method in ("wanda", "sparsegpt"):
            with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.down_proj"):
                mask(model, measured["task"], method, measured["general"], MaskOptions(task_aware=True))
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = value
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj"):
        mask(model, None, "magnitude")


def test_channels_without_any_input_give_finite_masks():
    model = tiny_model("llama")
    measured = statistics_of(model)
    for gram in measured.grams.values():
        gram[::3] = gram[:, ::3] = 0
    silent = Statistics({key: gram * 0 for key, gram in measured.grams.items()}, measured.sources, measured.tokens)
    by_size = mask(model, None, "magnitude")
    for method in ("wanda", "ria", "sparsegpt"):
        masks = mask(model, measured, method, silent, MaskOptions(task_aware=True))
        for name in masks:
            left = masks[name].at(10)
            assert torch.isfinite(left).all()
            assert ((left != 0).sum(1) == 10).all()
        if method != "ria":
            masks = mask(model, silent, method)
            assert all(torch.equal(masks[name].at(10), by_size[name].at(10)) for name in masks)


def test_statistics_of_another_kind_are_refused():
    model = tiny_model("llama")
    cheapest = collect(model, batches(SEQUENCES, 512), "cheapest")
    with pytest.raises(InputError, match="method='wanda'"):
        mask(model, cheapest, "wanda")
    with pytest.raises(InputError, match="know nothing of"):
        mask(model, statistics_of(tiny_model("gpt2")), "wanda")
    with pytest.raises(InputError, match="only task-aware masks read statistics of general text"):
        mask(model, statistics_of(model), "wanda", statistics_of(model))
    with pytest.raises(InputError, match="general text"):
        mask(model, statistics_of(model), "wanda", options=MaskOptions(task_aware=True))
    with pytest.raises(InputError, match="unknown method"):
        mask(model, statistics_of(model), "svd")
    with pytest.raises(InputError, match="do not fit"):
        apply_(tiny_model("gpt2"), masks_of(model), {})


def test_impossible_plans_change_nothing():
    model = tiny_model("llama")
    dense, name = logits(model), "model.layers.0.mlp.down_proj"
    masks, pairs = masks_of(model), masks_of(model, pattern="2:4")
    for chosen, plan, words in (
        (masks, {name: 72}, "1…71"),
        (masks, {name: 0}, "1…71"),
        (masks, {"model.layers.7.mlp.down_proj": 8}, "layers.7"),
        (pairs, {name: 20}, "2:4 keeps 36"),
    ):
        with pytest.raises(InputError, match=words):
            apply_(model, chosen, plan)
    assert torch.equal(logits(model), dense)


def test_a_ramp_keeps_more_where_the_hessian_is_large():
    model = tiny_model("llama")
    masks = masks_of(model, ramp=0.2)
    measured, matrices = statistics_of(model), masks.matrices(model)
    traces = {name: float(measured.grams[measured.sources[name].gram].diagonal().mean()) for name in masks}
    kept = Plan.uniform(matrices.values(), 0.5).kept(matrices)
    least, most = min(traces, key=traces.get), max(traces, key=traces.get)
    assert kept[most] > 0.55 > 0.45 > kept[least]
    assert [kept[name] for name in sorted(traces, key=traces.get)] == sorted(kept.values())
