"""One stream of events: bars, `logging` and trackers hear the same."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

import sieve
from sieve.errors import InputError
from sieve.utils import progress, trackers
from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures


@pytest.fixture
def heard():
    events = []
    with progress.listening(events.append):
        yield events


def test_a_listener_hears_work_whether_or_not_it_is_shown(heard, capsys):
    with progress.bar("baking", 3, "loaves") as advance:
        advance(1)
        advance(2)
    progress.note("hot")
    progress.measured({"heat": 200.0}, 4)
    assert [(one.kind, one.text, one.done, one.total, one.unit) for one in heard[:4]] == [
        ("begin", "baking", 0, 3, "loaves"),
        ("advance", "baking", 1, 3, "loaves"),
        ("advance", "baking", 3, 3, "loaves"),
        ("end", "baking", 3, 3, "loaves"),
    ]
    assert heard[4].text.strip().startswith("baking: 3 loaves in ")
    assert (heard[5].kind, heard[5].text) == ("note", "hot")
    assert (heard[6].values, heard[6].step) == ({"heat": 200.0}, 4)
    assert capsys.readouterr().err == ""


def test_work_that_fails_ends_too(heard):
    with pytest.raises(KeyError), progress.bar("baking", 3, "loaves") as advance:  # noqa: PT012
        advance(1)
        raise KeyError
    assert [one.kind for one in heard] == ["begin", "advance", "end"]
    with progress.shown(), progress.bar("again", 1, "loaf"):
        pass
    assert progress._terminal._bars == []


@pytest.mark.parametrize(("seconds", "rate"), [(0.5, "86"), (20.0, "2.1"), (120.0, "0.36")])
def test_slow_work_has_a_rate_too(capsys, monkeypatch, seconds, rate):
    times = iter([0.0, seconds])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(times))
    with progress.shown(), progress.bar("baking", 43, "loaves") as advance:
        advance(43)
    assert f"baking: 43 loaves in {seconds:.1f} s ({rate}/s)" in capsys.readouterr().err


def test_the_logger_has_the_lines(caplog):
    with caplog.at_level(logging.INFO, logger="sieve"):
        progress.say("  line\x1b[2J")
        progress.note("careful")
    said = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert said == [("INFO", "line\\x1b[2J"), ("WARNING", "careful")]


def test_a_program_without_logging_prints_nothing():
    code = "from sieve.utils import progress; progress.note('careful'); progress.say('line')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_muted_work_is_silent(heard, capsys):
    with progress.shown(), progress.muted():
        progress.note("hot")
        progress.note_once("once")
        with progress.bar("baking", 1, "loaf") as advance:
            advance(1)
    assert heard == []
    with progress.shown():
        progress.note_once("once")
        progress.note_once("once")
    assert capsys.readouterr().err.count("once") == 1


def test_a_listener_that_fails_ends_no_work(heard, capsys):
    def broken(event):
        raise ConnectionError("no\nnetwork")

    with progress.shown(), progress.listening(broken):
        progress.say("one")
        progress.say("two")
    assert capsys.readouterr().err.count("ConnectionError: no network") == 1
    assert [one.text for one in heard if one.kind == "line"] == ["one", "two"]


class Recorder:
    """Stands for the modules of trackers: every call is kept."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*given, **named):
            self.calls.append((name, given, named))
            return self

        return call


@pytest.fixture
def library(monkeypatch):
    recorder = Recorder()
    known = sys.modules | {"mlflow": recorder, "trackio": recorder}
    known["torch.utils.tensorboard"] = SimpleNamespace(SummaryWriter=recorder.SummaryWriter)
    monkeypatch.setattr(sys, "modules", known)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: recorder)
    for name in ("mlflow", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, known[name])
    return recorder


@pytest.mark.parametrize(
    ("name", "log", "end"),
    [("mlflow", "log_metrics", "end_run"), ("trackio", "log", "finish"), ("tensorboard", "add_scalar", "close")],
)
def test_trackers(library, name, log, end):
    with pytest.raises(KeyError), trackers.tracked(name, "mine", {"search": "ga", "kept": None}):  # noqa: PT012
        progress.measured({"accuracy": 0.5}, 7)
        progress.measured({"seconds": 2.0})
        progress.say("not a number")
        raise KeyError
    names = [call[0] for call in library.calls]
    assert names.count(log) == 2
    assert names[-1] == end
    (_, given, named) = next(call for call in library.calls if call[0] == log)
    assert named.get("step", given[-1]) == 7
    assert "0.5" in str(given)
    assert "kept" not in str(library.calls)
    assert "'ga'" in str(library.calls) or "search: ga" in str(library.calls)


def test_trackers_that_are_not_there(run, world, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="unknown tracker 'wandb': choose one of mlflow, tensorboard, trackio"):
        trackers.check_tracker("wandb")
    for name in trackers.TRACKERS:
        try:
            trackers.check_tracker(name)
        except InputError as error:
            assert f"pip install {name}" in str(error)  # noqa: PT017
            code, out, err = run(*options(world, tmp_path / "m"), "--track", name)
            assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_run_measures(run, world, tmp_path, heard):  # noqa: F811
    assert run(*options(world, tmp_path / "m"), "--quiet")[0] == 0
    names = {name for one in heard for name in one.values}
    assert {"search/removed", "search/accuracy", "search/layer_tokens", "seconds/search", "result/removed"} <= names
    assert "result/accuracy/test" in names
    steps = [one.step for one in heard if "search/removed" in one.values]
    assert steps == list(range(1, len(steps) + 1))
    begun = [one for one in heard if one.kind == "begin"]
    assert len(begun) == len([one for one in heard if one.kind == "end"]) > 0


def test_the_library_imports_in_silence():
    """As the command line does: what torchao says is of no use to a user."""
    code = (
        "import sieve\n"
        "import transformers.quantizers.auto, torchao, logging\n"
        "logging.getLogger('torchao').warning('another warning')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == "another warning\n"
    assert sieve.__version__
