"""A run in one sentence."""

from sieve.run.report.sentence import sentence


def test_it_says_size_accuracy_controls_and_speed():
    whole = {
        "parameters": {"model_removed": 0.5, "prunable_removed": 0.625},
        "accuracy": {
            "dense": {"test": {"value": 0.75}},
            "pruned": {"test": {"value": 0.74}},
            "chance": {"test": 0.25},
            "majority": {"test": None},
            "ngrams": {"test": 0.5},
        },
        "speed": {"seconds": {"dense": {"decode": 0.02}, "pruned": {"decode": 0.01}}},
    }
    assert sentence(whole) == (
        "In short: 50.0% of the model is gone, 62.5% of what can be pruned; test accuracy is 0.740 where the dense "
        "model's is 0.750 (without a model, an n-gram classifier gets 0.500); here a token takes 0.50 of the dense "
        "model's time."
    )


def test_older_reports_say_less():
    old = {
        "parameters": {"model_removed": 0.5, "prunable_removed": 0.625},
        "accuracy": {"dense": {"test": {"value": 0.75}}, "pruned": {"test": {"value": 0.74}}},
    }
    assert sentence(old) == (
        "In short: 50.0% of the model is gone, 62.5% of what can be pruned; test accuracy is 0.740 where the dense "
        "model's is 0.750."
    )
