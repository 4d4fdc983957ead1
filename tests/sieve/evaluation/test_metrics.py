"""What counts as the same answer: nothing is emptied, and nothing that means another thing is made equal."""

import sys

import pytest

from sieve.errors import InputError
from sieve.evaluation.generation import score_answer
from sieve.evaluation.metrics import metric_function
from sieve.evaluation.normalise import MODES, words
from sieve.tasks import Task, load_task

EQUAL = [
    ("The Eiffel Tower.", "Eiffel tower"),
    ("U.S.A.", "USA"),
    ("1,000", "1000"),
    ("5 %", "5%"),
    ("$ 5", "$5"),
    ("x<3", "x < 3"),
    ("“Paris”", "Paris"),
    ("it’s", "it's"),
    ("Ｐａｒｉｓ！", "Paris!"),
    ("东京。", "东京"),
    ("cafe\u0301", "café"),
    ("−5", "-5"),
    ("Par\u00adis\u200b", "Paris"),
    ("(Paris)", "Paris"),
    ("**Paris**", "Paris"),
    ("- Paris", "Paris"),
    ("Paris — France", "Paris, France"),
    ("Paris,France", "Paris, France"),
    ("...Paris", "Paris"),
    ('"5"', "5"),
    ("vitamin a deficiency", "Vitamin A deficiency"),
    ("A.", "a"),
    ("!", "!"),
    ("the", "The"),
]
DIFFERENT = [
    ("", "A"),
    ("", "the"),
    ("", "!"),
    ("?", "!"),
    ("-5", "5"),
    ("- 5", "5"),
    ("+", "-"),
    ("3.5", "35"),
    ("3,5", "35"),
    (".5", "5"),
    ("1e3", "13"),
    ("10:30", "1030"),
    ("5%", "5"),
    ("$5", "5"),
    ("~5", "5"),
    ("5!", "5"),
    ("6'", "6"),
    ("x²", "x2"),
    ("½", "12"),
    ("1/2", "12"),
    ("C++", "C"),
    ("C#", "C"),
    (".NET", "net"),
    ("x < 3", "x > 3"),
    ("x != 3", "x = 3"),
    ("p ∧ q", "p ∨ q"),
    ("f(x)", "fx"),
    ("2*3*4", "234"),
    ("*args", "args"),
    ("__init__", "init"),
    ("[1, 2)", "(1, 2]"),
    ("we're", "were"),
    ("Vitamin A", "Vitamin"),
    ("A B", "B"),
]


class TestWords:
    @pytest.mark.parametrize(("one", "two"), EQUAL)
    def test_the_same_answer(self, one, two):
        assert score_answer(one, [two], "exact_match") == score_answer(two, [one], "exact_match") == 1
        assert score_answer(one, [two], "f1") == 1

    @pytest.mark.parametrize("normalise", MODES)
    @pytest.mark.parametrize(("one", "two"), DIFFERENT)
    def test_another_answer(self, one, two, normalise):
        assert score_answer(one, [two], "exact_match", normalise) == 0
        assert score_answer(two, [one], "exact_match", normalise) == 0

    @pytest.mark.parametrize("normalise", MODES)
    @pytest.mark.parametrize(
        "text", ["a", "The", "!", "...", "—", "“”", "a the", "()", "-", "`", "**", "\u00adx", "的"]
    )
    def test_nothing_is_emptied(self, text, normalise):
        assert words(text, normalise)

    @pytest.mark.parametrize(
        ("answer", "reference", "want"),
        [
            ("It is in Paris, France", "paris", 1),
            ("comparison", "paris", 0),  # words, not letters
            ("new york city", "york new", 0),
            ("", "A", 0),
            ("", "", 0),
            ("a dog", "A", 0),
            ("Anything else", "A", 0),
            ("The answer is A.", "A", 1),
            ("A) Paris", "A", 1),
            ("It is -5.", "5", 0),
            ("It is 3.5.", "5", 0),
            ("It is C++.", "C", 0),
            ("Titanic (1997)", "1997", 1),
            ("It costs $5.", "5", 1),
            ("答案是东京。", "东京", 1),
        ],
    )
    def test_contains(self, answer, reference, want):
        assert score_answer(answer, [reference], "contains") == want

    @pytest.mark.parametrize(
        ("answer", "references", "want"),
        [
            ("the red car", ["red bus"], 0.5),
            ("red red car", ["red"], 0.5),  # a word counts as often as it is in both
            ("nothing", ["red"], 0),
            ("red car", ["blue", "car red"], 1),
            ("", ["red"], 0),
            ("", ["a"], 0),
        ],
    )
    def test_f1(self, answer, references, want):
        assert score_answer(answer, references, "f1") == want

    @pytest.mark.parametrize(
        ("answer", "reference", "want"),
        [
            ("1,000", "1000.0", 1),
            ("1e3", "1000", 1),
            (".5", "1/2", 1),
            ("5.0 %", "5%", 1),
            ("1/0", "1/0", 1),
            ("+7", "7", 1),
        ],
    )
    def test_numbers_by_value(self, answer, reference, want):
        assert score_answer(answer, [reference], "exact_match", "numeric") == want
        assert score_answer(answer, [reference], "exact_match", "none") == (answer == reference)

    def test_a_huge_exponent_is_no_number(self):
        assert words("1e999999999", "numeric") == ["1e999999999"]

    @pytest.mark.parametrize(
        ("answer", "reference", "want"),
        [
            ("Paris", "paris", 0),
            ("Paris.", "Paris", 0),
            ("the x", "x", 0),
            ("It’s  so", "It's so", 1),
            ("café", "cafe\u0301", 1),
        ],
    )
    def test_as_it_is(self, answer, reference, want):
        assert score_answer(answer, [reference], "exact_match", "none") == want

    def test_the_best_reference_counts(self):
        assert score_answer("b", ["a1", "B"], "exact_match") == 1


class TestLibraries:
    def test_rouge_l(self):
        pytest.importorskip("rouge_score")
        assert score_answer("the red car", ["a red bus", "red car"], "rouge_l") == 1
        assert score_answer("red fast car", ["red car"], "rouge_l") == pytest.approx(0.8)
        assert score_answer("Москва", ["москва!"], "rouge_l") == 1  # its own tokenizer knows no Cyrillic

    def test_bleu_and_chrf_are_those_of_the_library(self):
        sacrebleu = pytest.importorskip("sacrebleu")
        answer, references = "the cat sat on a mat", ["the cat sat on the mat", "a cat sat there"]
        bleu = sacrebleu.BLEU(effective_order=True).sentence_score(answer, references).score
        assert score_answer(answer, references, "bleu") == pytest.approx(bleu / 100)
        chrf = sacrebleu.CHRF().sentence_score(answer, references).score
        assert score_answer(answer, references, "chrf") == pytest.approx(chrf / 100)
        assert score_answer(references[0], references, "bleu") == pytest.approx(1)
        assert score_answer("", references, "bleu") == score_answer("", references, "chrf") == 0

    @pytest.mark.parametrize("metric", ["rouge_l", "bleu", "chrf"])
    def test_a_missing_one_is_named_with_its_command(self, metric, monkeypatch):
        metric_function.cache_clear()
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(InputError, match="run: pip install "):
            score_answer("a", ["a"], metric)


OWN = """\
def half(answer, references):
    return 0.5 if answer in references else 0


def wild(answer, references):
    return 7
"""
TASK = "type: generation\ndata: [{q: x, a: y}, {q: z, a: w}]\nprompt: '{q}'\nanswer: a\nmetric: own_metric:half\n"


class TestOwnFunction:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "own_metric.py").write_text(OWN)
        (tmp_path / "t.yaml").write_text(TASK)
        yield
        sys.modules.pop("own_metric", None)
        metric_function.cache_clear()

    def test_by_name(self):
        assert score_answer("y", ["x", "y"], "own_metric:half") == 0.5

    def test_itself(self):
        task = Task(
            "t", "generation", [{"q": "x", "a": "y"}], "{q}", answer="a", metric=lambda answer, references: 0.25
        )
        assert score_answer("y", ["x"], task.metric) == 0.25

    def test_a_task_file_alone_runs_no_code(self, monkeypatch):
        with pytest.raises(InputError, match="set SIEVE_ALLOW_CODE=1 if you trust it"):
            load_task("t.yaml")
        assert "own_metric" not in sys.modules
        monkeypatch.setenv("SIEVE_ALLOW_CODE", "1")
        assert score_answer("y", ["y"], load_task("t.yaml").metric) == 0.5

    @pytest.mark.parametrize(
        ("metric", "message"),
        [
            ("own_metric:wild", r"gave 7\.0 .* must be in \[0, 1\]"),
            ("own_metric:nothing", "no function 'nothing'"),
            ("no_such_module:f", "cannot import no_such_module"),
            ("rouge", "unknown metric 'rouge'"),
        ],
    )
    def test_what_cannot_be_used(self, metric, message):
        with pytest.raises(InputError, match=message):
            score_answer("y", ["y"], metric)

    def test_what_raises(self):
        with pytest.raises(InputError, match="ZeroDivisionError"):
            score_answer("y", ["y"], lambda answer, references: 1 / 0)


def test_no_references():
    with pytest.raises(InputError, match="no reference"):
        score_answer("y", [], "exact_match")
