"""Calibration with text that the model generates itself."""

import pytest
import torch

import sieve
from sieve.calibration.generated import LENGTH, SampleTop, generate_samples
from sieve.calibration.text import Sample
from sieve.searchers import sensitivity
from tests.tiny_models import tiny_model, tiny_tokenizer, tiny_tokens

ROWS = [Sample(ids, 9) for ids in tiny_tokens(12, 12).tolist()]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_equal_seeds_give_equal_texts_and_nothing_else_changes(model):
    torch.manual_seed(5)
    expected, config = torch.rand(1), model.generation_config
    torch.manual_seed(5)
    one, same, other = (generate_samples(model, tiny_tokenizer(), ROWS, 600, seed) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    assert model.generation_config is config
    assert one == same != other
    assert sum(len(sample.ids) for sample in one) >= 600
    assert all(9 <= len(sample.ids) <= LENGTH and sample.start == 1 for sample in one)


def test_texts_end_where_the_model_ends_them(model):
    end = generate_samples(model, tiny_tokenizer(), ROWS, 600)[0].ids[20]
    tokenizer = tiny_tokenizer()
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, end
    try:
        assert all(end not in sample.ids for sample in generate_samples(model, tokenizer, ROWS, 600))
    finally:
        model.generation_config.eos_token_id = before


def test_a_model_that_only_ends_its_texts_is_told_of(model, monkeypatch, caplog):
    def only_ends(ids, **_):
        return torch.cat([ids, ids.new_full((len(ids), 1), 2)], 1)

    monkeypatch.setattr(model, "generate", only_ends)
    model.generation_config.eos_token_id = 2
    assert generate_samples(model, tiny_tokenizer(), ROWS, 600) == []
    assert "generates no text" in caplog.text


def test_tokens_are_drawn_from_the_softmax_of_the_likeliest():
    torch.manual_seed(0)
    logits = torch.tensor([1.0, -3.0, 0.0, 2.0, -1.0])
    drawn = SampleTop(3)(None, logits.expand(50_000, -1)).argmax(1)
    found = torch.bincount(drawn, minlength=5) / len(drawn)
    wanted = logits.masked_fill(torch.tensor([False, True, False, False, True]), -torch.inf).softmax(0)
    assert torch.allclose(found, wanted, atol=0.01)
    assert found[1] == found[4] == 0


def test_the_sums_are_over_both_and_are_reused(model, world, tmp_path, monkeypatch):
    def calibrated(**more):
        return sieve.calibrate(model, tiny_tokenizer(), world.task, 600, "loss_aware", path=tmp_path, **more)

    alone, both = calibrated(), calibrated(generated=500)
    texts = both.generated
    assert sum(len(sample.ids) for sample in texts) >= 500
    assert both.samples == alone.samples + texts
    assert both.held_back == alone.held_back
    assert both.tokens == alone.tokens + sum(len(sample.ids) for sample in texts)
    key = "model.layers.0.mlp.down_proj.output"
    assert both.grams[key].diagonal().sum() > alone.grams[key].diagonal().sum()
    # Again from the file; and the same texts given are another calibration of the same sums.
    monkeypatch.setattr("sieve.calibration.collect.generate_samples", None)
    again = calibrated(generated=500)
    assert again.generated == texts
    given = calibrated(generated=texts)
    assert given.identity != both.identity
    torch.testing.assert_close(given.grams[key], both.grams[key])


def test_predicted_losses_are_of_rows_and_of_as_many_pieces(model, world):
    task = sieve.load_task(world.task)
    rows = task.splits(0)["calibration"][:6]
    statistics = sieve.calibrate(model, tiny_tokenizer(), task, 600, generated=900)
    factors = sieve.project(model, statistics)
    texts = statistics.generated
    both, _ = sensitivity.sensitivity(model, tiny_tokenizer(), factors, task, rows, texts)
    alone, _ = sensitivity.sensitivity(model, tiny_tokenizer(), factors, task, rows)
    pieces = sensitivity._pieces(texts, len(rows))
    assert len(pieces) == len(rows)
    assert all(len(ids) == sensitivity.PIECE and start == sensitivity.PIECE - sensitivity.PREDICTED
               for ids, start in pieces)  # fmt: skip
    # The mean over both is the mean of the two means.
    sums = {}
    for piece in pieces:
        for name, squares in sensitivity._batch(model, factors, [piece]).items():
            sums[name] = sums.get(name, 0) + squares
    for name, curve in both.items():
        expected = (alone[name] + sums[name] / len(pieces) / 2) / 2
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected), rtol=1e-4, atol=1e-9)
