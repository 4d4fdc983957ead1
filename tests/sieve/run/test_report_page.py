"""The pages of runs: they hold what the report holds, need nothing else, and no text in them is markup."""

import copy
import json
import math
from html.parser import HTMLParser

import pytest

from sieve.run.compare import read_runs
from sieve.run.report.html.compare_page import Run, compare_page
from sieve.run.report.html.curve import Tried, front
from sieve.run.report.html.markup import Html, tag
from sieve.run.report.html.run_page import run_page, run_pages
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures

VOID = {"meta", "br"}
EVIL = "</script><script>alert(1)</script>\x1b[2J\"'&<b>\u202e"


def interval(value, n=200):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def report(**changes):
    splits = ("fitness", "validation", "test")
    kept = {f"model.layers.{block}.{kind}": (block + 1) / 4 for block in range(3) for kind in ("attn.q", "mlp.up")}
    made = {
        "version": 1,
        "model": "smollm2",
        "task": "geography",
        "tolerance": 0.1,
        "data": {"test": {"examples": 200, "sha256": "ab"}},
        "parameters": {
            "prunable_removed": 0.6,
            "model_removed": 0.5,
            "prunable": {"dense": 1000, "pruned": 400},
            "model": {"dense": 2000, "pruned": 1000},
        },
        "bytes": {"dense": 4_000_000, "pruned": 2_000_000},
        "accuracy": {
            "dense": {split: interval(0.8) for split in splits},
            "pruned": {split: interval(0.75) for split in splits},
            "chance": dict.fromkeys(splits, 0.25),
            "majority": dict.fromkeys(splits, 0.3),
            "ngrams": {"test": 0.4},
        },
        "loglik": {which: {split: interval(-1.0) for split in splits} for which in ("dense", "pruned")},
        "difference": {name: {split: interval(-0.1) for split in splits} for name in ("accuracy", "loglik")},
        "notes": [],
        "resolution": {"standard_error": 0.02, "tolerance": 0.08, "sufficient": True, "needed_n": 100},
        "seconds": {"load": 1.5, "search": 40.0},
        "kept": {**kept, "lm_head": 0.5},
        "left_dense": {},
        "spectra": {
            name: {"full": 8, "holds_90": 2, "holds_99": 5, "kept": None if name == "lm_head" else 3}
            for name in (*kept, "lm_head")
        },
        "speed": {
            "machine": "Abacus 3000, 2 threads",
            "dtype": "bfloat16",
            "tokens": {"prefill": 128, "decode": 16},
            "seconds": {
                "dense": {"prefill": 0.002, "decode": 0.1},
                "pruned": {"prefill": 0.001, "decode": 0.08},
            },
        },
        "search": {
            "search": "ga",
            "candidates": 3,
            "layer_tokens_plain": 1000,
            "layer_tokens_spent": 100,
            "cost_ratio": 10.0,
            "saved_by": {"prefix": 500, "layers": 300, "racing": 100, "logits": 7, "journal": 0},
            "evaluated": [
                {"prunable_removed": 0.2, "accuracy": 0.79, "layer_tokens": 20, "uniform": True},
                {"prunable_removed": 0.6, "accuracy": 0.75, "layer_tokens": 60, "uniform": False},
                {"prunable_removed": 0.5, "accuracy": 0.6, "layer_tokens": 100, "uniform": True},
            ],
        },
        "refit": None,
        "bottlenecks": [
            {"names": ["model.layers.0.mlp.up"], "breaks": True},
            {"names": ["model.layers.1.mlp.up"], "breaks": False},
        ],
        "versions": {"python": "3.12", "triton": None},
    }
    return made | changes


class Page(HTMLParser):
    """Checks the nesting of elements and gathers them, their attributes and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data


def test_the_page_of_a_run_holds_its_numbers():
    page = Page(run_page(report(), {"search": "ga", "kept": None, "engine": {"layers": True}}))
    for words in (
        "60.0 % of the prunable parameters are gone, 50.0 % of all: 4.0 MB became 2.0 MB",
        "accuracy is 0.750 where the dense model has 0.800: 10.0 points lower",
        "tolerance of 10.0 % had to hold, it lost 5.0 of the 8.0 points allowed",
        "0.750 [0.700, 0.800]",
        "−0.100 [−0.150, −0.050]",
        "a classifier of letters",
        "lm_head: 50.0 %",
        "model.layers.0.mlp.up: 25.0 % kept, a bottleneck",
        "the uniform curve",
        "shared beginnings of prompts run once",
        "layer-tokens spent",
        "engine.layers",
        "42 s in all",
        "model.layers.1.mlp.up: 90 % of the energy in rank 2, 99 % in 5 of 8; rank 3 kept",
        "lm_head: 90 % of the energy in rank 2, 99 % in 5 of 8; dense",
        "tokens of a prompt, 128 at once500.01,000.02.00 ×",
        "new tokens, one after the other10.012.51.25 ×",
        "On Abacus 3000, 2 threads, in bfloat16",
    ):
        assert words in page.text, words
    assert page.text.count("kept, a bottleneck") == 1
    assert sum(name == "svg" for name, _ in page.elements) == 8


def test_a_page_needs_nothing_else():
    page = Page(run_page(report(), {}))
    assert {name for name, _ in page.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    for _, given in page.elements:
        assert not {"href", "src", "style", "onload", "srcset"} & given.keys()
    policy = next(given["content"] for name, given in page.elements if given.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "@import" not in page.text
    assert "url(" not in page.text
    for media in ("prefers-color-scheme: dark", "@media print", "max-width: 30rem"):
        assert media in page.text


def test_no_text_is_markup():
    named = {f"model.layers.0.{EVIL}": 0.5, EVIL: 0.5}
    ranks = {"full": 8, "holds_90": 2, "holds_99": 5, "kept": 3}
    made = report(model=EVIL, task=EVIL, notes=[EVIL], kept=named, left_dense={EVIL: EVIL}, versions={EVIL: EVIL})
    made["bottlenecks"][0]["names"] = list(named)
    made["seconds"] = {EVIL: 1.0}
    made["spectra"] = dict.fromkeys(named, ranks)
    made["speed"] |= {"machine": EVIL, "dtype": EVIL, "tokens": {"prefill": EVIL}}
    made["search"]["search"] = EVIL
    for text in (run_page(made, {EVIL: EVIL}), compare_page([Run(EVIL, made, {EVIL: EVIL}), Run("b", made, {})])):
        page = Page(text)
        assert "script" not in {name for name, _ in page.elements}
        assert "b" not in {name for name, _ in page.elements}
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "</script><script>" in page.text


@pytest.mark.parametrize("odd", [math.nan, math.inf, None, "x</script>"])
def test_what_is_no_number_is_left_out(odd):
    made = report()
    made["search"]["evaluated"][0]["accuracy"] = odd
    made["search"]["saved_by"]["prefix"] = odd
    made["accuracy"]["ngrams"]["test"] = odd
    made["difference"]["accuracy"]["test"]["low"] = odd
    made["seconds"]["load"] = odd
    made["kept"]["lm_head"] = odd
    made["spectra"]["lm_head"]["holds_90"] = odd
    made["speed"]["seconds"]["dense"]["decode"] = odd
    text = run_page(made, {"kept": odd})
    page = Page(text)
    assert "nan" not in page.text.lower().replace("finance", "")
    assert "Infinity" not in text
    for _, given in page.elements:
        assert not {"nan", "inf", "None"} & set(given.values())


def test_a_report_of_before_gives_a_page():
    """Reports of the first versions lack much of this, and other kinds of runs have no search to show."""
    made = report()
    for name in ("notes", "left_dense", "refit", "versions", "data", "spectra", "speed"):
        del made[name]
    made["bottlenecks"] = None
    made["accuracy"] = {which: made["accuracy"][which] for which in ("dense", "pruned")}
    made["search"] = {"search": "uniform", "layer_tokens_spent": 0, "evaluated": []}
    page = Page(run_page(made, {}))
    assert "Accuracy against size" not in page.text
    assert "What was kept" in page.text


def test_sizes_that_are_asked_for():
    made = report()
    page = Page(run_page(made, {"kept": 0.5}))
    assert "The goal was the best model with 50 % of the parameters" in page.text
    assert "as small as asked for" in page.text
    assert "tolerance:" not in page.text


def test_a_page_that_fails_ends_no_run():
    broken = report()
    del broken["bytes"]
    assert run_pages(broken, {}) == {}
    assert list(run_pages(report(), {})) == ["report.html"]


def test_the_front():
    some = [
        Tried(removed, accuracy, None, False) for removed, accuracy in [(0.1, 0.5), (0.2, 0.8), (0.3, 0.7), (0.3, 0.6)]
    ]
    assert [(one.removed, one.accuracy) for one in front(some)] == [(0.2, 0.8), (0.3, 0.7)]


def test_markup_is_made_by_functions_alone():
    assert tag("p", "<&>", Html("<b>x</b>"), None, class_='"') == '<p class="&quot;">&lt;&amp;&gt;<b>x</b></p>'


def test_comparing():
    other = copy.deepcopy(report())
    other["parameters"]["prunable_removed"] = 0.3
    other["accuracy"]["pruned"]["test"] = interval(0.79)
    runs = [Run("one", report(), {"search": "ga", "seed": 0}), Run("two", other, {"search": "budget", "seed": 0})]
    page = Page(compare_page(runs))
    assert "one is the smallest: 60.0 % removed, test accuracy 0.750" in page.text
    assert "two is the most accurate: 0.790 at 30.0 % removed. Their intervals overlap" in page.text
    assert "seed" not in page.text
    assert "budget" in page.text
    assert "not the same examples" not in page.text
    other["data"]["test"]["sha256"] = "cd"
    assert "not the same examples" in Page(compare_page(runs)).text
    other["task"] = "countries"
    assert "not the same examples" not in Page(compare_page(runs)).text


def test_runs_have_pages_and_are_compared(run, world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for name, search in (("a", "budget"), ("b", "uniform")):
        code, _, err = run(*options(world, tmp_path / name), "--search", search, "--quiet")
        assert code == 0, err
    made = json.loads((tmp_path / "a" / "report.json").read_text())
    assert Page((tmp_path / "a" / "report.html").read_text()).text.count(made["task"]) > 1
    tokens = [one["layer_tokens"] for one in made["search"]["evaluated"]]
    assert tokens == sorted(tokens)
    assert 0 < tokens[-1] <= made["search"]["layer_tokens_spent"]
    code, out, err = run("compare", "a", "b")
    assert code == 0, err
    assert "is the smallest" in out
    page = Page((tmp_path / "compare.html").read_text())
    assert "uniform" in page.text
    assert [one.name for one in read_runs(["a", "b"])] == ["a", "b"]
    assert run("compare", "a", "b", "--json")[0] == 0
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    code, out, err = run("compare", "a", "--output", "mine.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "did not make it" in err
    for given, words in ((("a", "./a"), "named twice"), (("a", "none"), "no report.json")):
        code, out, err = run("compare", *given)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err
