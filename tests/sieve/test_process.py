"""Sieve as a process among others: signals end it cleanly, and its exit code is right whatever reads its output."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.sieve.test_cli import options, own_cache, run  # noqa: F401 - fixtures

SIEVE = [sys.executable, "-m", "sieve"]
GENETIC = ("--search", "ga", "--generations", 3, "--population", 6, "--offspring", 8, "--bottlenecks", 0)


def started(*arguments, **streams):
    return subprocess.Popen([*SIEVE, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **streams)


# The command, which rests where it says that it has come to a stage: a fast machine would be through.
RESTING = """
import sys, time
from sieve import cli, progress
moment, say = sys.argv.pop(1), progress.say
def resting(message, *rest, **options):
    say(message, *rest, **options)
    if message.strip().startswith(moment):
        time.sleep(60)
progress.say = resting
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "moment", "left"),
    [
        (signal.SIGTERM, "load", []),
        (signal.SIGINT, "calibrate", []),
        (signal.SIGHUP, "generation 0", ["out.unfinished"]),
        (signal.SIGTERM, "test", ["out.unfinished"]),
    ],
)
def test_a_signal_cleans_up_says_so_and_has_its_exit_code(world, tmp_path, number, moment, left):
    place = tmp_path / "place"
    command = [sys.executable, "-c", RESTING, moment, *map(str, options(world, place / "out")), *map(str, GENETIC)]
    # What started the tests may ignore a signal (`nohup`), which processes inherit.
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
        ),
    )
    seen = []
    for line in running.stderr:
        seen.append(line)
        if line.strip().startswith(moment):
            break
    running.send_signal(number)
    # A service manager may send another one: it does not disturb the clean-up. Of two kinds any may come first.
    if number == signal.SIGTERM:
        running.send_signal(number)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 128 + number, [*seen, err]
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("sieve: interrupted: ")
    found = sorted(path.name for path in place.glob("*")) + sorted(path.name for path in place.glob(".*"))
    assert found == left
    assert ("--resume" in last) == bool(found)
    assert not list((tmp_path / "cache").rglob(".*"))


SLOW_DISK = """
import time
from sieve import cli
from sieve.utils import files
sync = files._sync
files._sync = lambda path: (time.sleep(0.3), sync(path))
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "written"),
    [(signal.SIGTERM, "sieve.safetensors"), (signal.SIGINT, "report.json"), (signal.SIGHUP, "checksums.json")],
)
def test_a_signal_while_the_folder_is_written_leaves_no_half_of_it(world, tmp_path, number, written):
    place = tmp_path / "place"
    command = [sys.executable, "-c", SLOW_DISK, *map(str, options(world, place / "out")), "--search", "uniform"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(place.glob(f".out.*/out/{written}")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (128 + number, "")
    assert err.splitlines()[-1] == f"sieve: interrupted: what is finished is kept; go on with --resume {place / 'out'}"
    assert [path.name for path in place.iterdir()] == ["out.unfinished"]
    resumed = started("prune", "--resume", place / "out", stdout=subprocess.PIPE)
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert [path.name for path in place.iterdir()] == ["out"]
    assert (place / "out" / written).is_file()


def test_nohup_stays_deaf(world, tmp_path):
    """What its caller ignores, the command ignores."""
    running = started(
        *options(world, tmp_path / "out"), stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    for line in running.stderr:
        if line.strip() == "load":
            break
    running.send_signal(signal.SIGHUP)
    running.communicate(timeout=120)
    assert running.returncode == 0
    assert (tmp_path / "out" / "report.json").is_file()


def shell(command):
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)


@pytest.mark.parametrize("command", ["tasks", "tasks --json", "--help", "prune --help", "--version"])
def test_what_is_printed_may_go_nowhere(command):
    """The exit code tells how the command went, not whether all of its output was read."""
    line = f"{sys.executable} -m sieve {command}"
    rarer = ("| true", ">&- 2>&-", ">/dev/null 2>&-", "<&-") if command in ("tasks --json", "prune --help") else ()
    for gone in ("| head -0", ">&-", *rarer):
        done = shell(f"{line} {gone}")
        assert (done.returncode, done.stderr) == (0, ""), gone
    done = shell(f"{line} >/dev/full")
    assert (done.returncode, done.stderr) == (4, "sieve: cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize("setting", ["SIEVE_KERNELS_ISA=avx3", "SIEVE_KERNELS=cublas"])
def test_a_bad_setting_of_the_kernels_is_bad_input(run, world, tmp_path, setting, monkeypatch):  # noqa: F811
    """Said before anything is read or made."""
    calibration = ("calibrate", world.model, "--task", world.task, "--output", tmp_path / "s.safetensors")
    monkeypatch.setenv(*setting.split("="))
    once = "ISA" in setting  # in a process
    for command in (options(world, tmp_path / "out"), calibration)[: 1 if once else 2]:
        if once:
            done = shell(f"{sys.executable} -m sieve {' '.join(map(str, command))} --quiet")
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code, out, err = run(*command, "--quiet")
        assert (code, out) == (2, "")
        assert err.startswith(f"sieve: {setting} is not one of ")
        assert err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_errors_have_their_exit_code_without_standard_error():
    line = f"{sys.executable} -m sieve"
    for gone in ("2>&-", "2>/dev/full", "2>&1 | true"):
        done = shell(f"{line} info nothing {gone}")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", ""), gone


@pytest.mark.parametrize("name", ["PYTHONIOENCODING=ascii", "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0", "TERM=dumb"])
def test_poor_terminals(name):
    for command in ("prune --help", "tasks", "tasks --json", "info ü"):
        done = shell(f"{name} {sys.executable} -m sieve {command}")
        assert done.returncode == (2 if "info" in command else 0)
        assert "Traceback" not in done.stderr
        if "TERM" not in name:
            assert done.stdout.isascii()


@pytest.mark.parametrize("gone", [">&-", "| head -0", ">/dev/full"])
def test_a_saved_folder_is_said_to_be_saved(world, tmp_path, gone):
    arguments = " ".join(map(str, options(world, tmp_path / "out")))
    done = shell(f"PYTHONIOENCODING=ascii {sys.executable} -m sieve {arguments} --quiet {gone}")
    assert (done.returncode, done.stderr) == (0, f"sieve: the pruned model is in {tmp_path / 'out'}\n")
    assert (tmp_path / "out" / "report.json").is_file()


QUICK = """
import json, sys
from sieve.cli import main
heavy = {"torch", "transformers", "numpy"}
for command in json.loads(sys.stdin.read()):
    sys.argv = ["sieve", *command]
    try:
        main()
    except SystemExit as end:
        print("outcome", json.dumps([end.code or 0, sorted(heavy & sys.modules.keys())]))
"""


def test_quick_commands_import_no_torch(tmp_path):
    """What is wrong with the arguments is said at once."""
    fine = [["--help"], ["prune", "--help"], ["--version"], ["tasks"], ["methods"]]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    (tmp_path / "recipe.yaml").write_text("model: m\ntask: geography\nobjective: x\n")
    values = """--dtype x; --tolerance 2; --tolerance 1e-300; --tolerance nan; --search nonsense; --objective x;
        --granularity x; --workers -1; --workers x; --workers 2; --kept 2; --population 0; --bottlenecks -1; --method x;
        --shrinkage 2; --shrinkage x; --calibration-tokens 3; --rank-multiple 0; --seed -1; --search uniform --paper;
        --tau 0.3; --no-surrogate; --method wanda --search budget; --method wanda --pattern 3:5; --budget x;
        --method wanda --refit; --task nothing.yaml; --task nothing; --output there; --data nothing;
        --device x; --device gpu; --device cpu:cpu; --device meta; --device cuda:x"""
    prune = ["prune", "m", "--task", "geography", "--output", "o"]
    wrong = [[*prune, *value.split()] for value in values.split(";")]
    wrong += [["prune"], ["prune", "--config", "recipe.yaml", "--output", "o"], ["prune", "--resume", "nothing"]]
    wrong += [["calibrate", "m", "--output", "x"], ["calibrate", "m", "--task", "geography", "--output", "there"]]
    wrong += [["eval", "m", *value.split()] for value in ("--split x", "--dtype x", "--seed -1", "--task x")]
    tail = ["--task", "geography", "--output", "o"]
    wrong += [["eval", "m", "--device", "x"], ["calibrate", "m", *tail, "--device", "x"]]
    for model in ("no/such/folder", "./nothing", "nobody/nothing", "nothing", "nothing.gguf", "recipe.yaml", "there"):
        wrong += [[command, model, *tail] for command in ("prune", "calibrate")]
        wrong += [["eval", model], ["eval", "model", "--task", "geography", "--against", model]]
    commands = [*fine, *wrong, ["info", "nothing"]]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", QUICK], input=json.dumps(commands), capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"HF_ENDPOINT": "http://localhost:9"},
    )  # fmt: skip
    outcomes = [json.loads(line[8:]) for line in done.stdout.splitlines() if line.startswith("outcome ")]
    for command, outcome in zip(commands, outcomes, strict=True):
        assert outcome == [0 if command in fine else 2, []], f"{command}: {done.stderr}"


def test_every_option_and_default_is_shown(run, monkeypatch):  # noqa: F811
    from sieve.run.recipe import recipe_options

    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = run("prune", "--help")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    for name, option in recipe_options().items():
        flag = name.upper() if option.argument else option.flag
        (line,) = [line for line in lines if line.split()[0] == flag]
        if option.default_text:
            assert line.endswith(f"[default: {option.default_text}]"), line
    assert out.count("[default: ") >= 25
    assert "[default: 0.05]" in out
    assert "[default: 32768]" in out


def test_help_is_grouped_and_fits_100_columns(run, monkeypatch):  # noqa: F811
    from sieve.cli import COMMANDS
    from sieve.utils.options import GROUPS

    monkeypatch.setenv("COLUMNS", "100")
    out = run("prune", "--help")[1]
    headings = [line.removesuffix(":") for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert tuple(headings) == GROUPS
    for name in COMMANDS:
        out = run(name, "--help")[1]
        assert max(map(len, out.splitlines())) <= 100
        assert out.count("[default: ") == len(re.findall(r"\[default: [^\]\n]+\]", out))  # none is parted
    out = run("--help")[1]
    assert max(map(len, out.splitlines())) <= 100
    assert "..." not in out.partition("Commands:")[2]  # summaries are whole


def test_the_docs_have_every_option():
    from sieve.commands.table import options_table

    docs = Path(__file__).parents[2] / "docs" / "options.md"
    assert docs.read_text() == options_table()  # else: python -m sieve.commands.table > docs/options.md


def test_methods_are_listed(run):  # noqa: F811
    listed = json.loads(run("methods", "--json")[1])
    assert {listed[name]["kind"] for name in ("svd_llm", "wanda", "ga")} == {"projection", "mask", "searcher"}
    out = run("methods")[1]
    assert all(name in out and about["about"].split()[0] in out for name, about in listed.items())


def test_version(run):  # noqa: F811
    import sieve

    assert run("--version") == (0, f"sieve {sieve.__version__}\n", "")


def processes_with(cache):
    """Processes whose cache is this folder, as those are that a run has started: pid → what they are."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"SIEVE_CACHE={cache}".encode() in (place / "environ").read_bytes().split(b"\0")
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended, or is another user's
            continue
        if mine:
            found[int(place.name)] = command[:200]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "everyone", "moment"),
    [
        (signal.SIGTERM, False, "evaluating"),
        (signal.SIGINT, True, "evaluating"),  # a terminal sends Ctrl-C to the workers, too
        (signal.SIGTERM, False, "connecting"),
        (signal.SIGTERM, False, "starting"),
    ],
)
def test_a_signal_ends_the_workers_too_and_the_search_goes_on_later(world, tmp_path, number, everyone, moment):
    pytest.importorskip("ray")
    output, cache = tmp_path / "place" / "out", tmp_path / "cache"
    many = ("--search", "ga", "--generations", 6, "--population", 12, "--offspring", 24, "--bottlenecks", 0)
    running = started(*options(world, output), *many, "--workers", 2, stdout=subprocess.PIPE, start_new_session=True)
    journal, seen = output.parent / "out.unfinished" / "journal.txt", []
    reader = threading.Thread(target=lambda: seen.extend(running.stderr))
    reader.start()

    def reached():
        if moment == "connecting":
            return any("raylet" in command for command in processes_with(cache).values())
        if moment == "starting":
            return any("starting 2 workers" in line for line in seen)
        return journal.exists() and journal.read_bytes().count(b"\n") > 12

    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline, seen
        assert running.poll() is None, seen
        time.sleep(0.05)
    if everyone:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    code = running.wait(60)
    reader.join()
    assert code == 128 + number, seen
    assert seen[-1].startswith("sieve: interrupted: ")
    assert "--resume" in seen[-1]
    assert "Traceback" not in "".join(seen)
    for _ in range(100):  # Ray's own processes notice that they are alone
        if not (left := processes_with(cache)):
            break
        time.sleep(0.1)
    assert not left
    if moment == "evaluating":
        found = len(journal.read_bytes().splitlines())
        resumed = started("prune", "--resume", output, "--workers", 2, stdout=subprocess.PIPE)
        _, err = resumed.communicate(timeout=200)
        assert resumed.returncode == 0, err
        assert found > 12
        assert (output / "report.json").is_file()
