"""Parts in processes of their own: what hangs or breaks costs its job and no other."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import runner
from bench.gpu.job import Job, Part
from bench.gpu.runner import Run

WORKER = """
import json, os, sys, time
options = sys.argv[1:]
skip = options[options.index("--skip") + 1:]
log = open(options[options.index("--log") + 1], "a", buffering=1)
for job in ("good", "breaks", "hangs", "fails", "last"):
    if job in skip:
        continue
    log.write(json.dumps({"job": job, "begun": True}) + "\\n")
    if job == "breaks":
        os._exit(7)
    if job == "hangs":
        time.sleep(100)
    if job == "fails":
        log.write(json.dumps({"job": job, "failed": "ValueError: 3"}) + "\\n")
    else:
        log.write(json.dumps({"job": job, "cells": {job: 1.0}}) + "\\n")
"""


@pytest.fixture
def run(tmp_path):
    """A part of five jobs, of which three give nothing."""
    (tmp_path / "worker.py").write_text(WORKER)
    jobs = [Job(name, (name,), lambda place: {}, 0.1, 2) for name in ("good", "breaks", "hangs", "fails", "last")]
    part = Part("part", "", 1, lambda sizes: jobs)
    return partial(Run, part, jobs, [], tmp_path, worker=(sys.executable, str(tmp_path / "worker.py")))


def test_a_job_that_breaks_or_hangs_costs_no_other(run):
    news = []
    outcome = run(news=lambda outcome: news.append(dict(outcome.cells))).within(60)
    assert outcome.cells == {"good": 1.0, "last": 1.0}
    assert outcome.failed == {
        "breaks": "the process ended with status 7",
        "hangs": "it gave no result in 2 s",
        "fails": "ValueError: 3",
    }
    assert outcome.left_out == {}
    assert news[0] == {"good": 1.0}


def test_when_the_time_is_up_the_rest_is_named(run, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.1)
    started = time.monotonic()
    outcome = run(news=lambda outcome: None).within(1)
    assert time.monotonic() - started < 5
    assert outcome.cells == {"good": 1.0}
    assert outcome.left_out.keys() >= {"fails", "last"}
    assert set(outcome.left_out.values()) == {"the time was up"}


def test_a_part_that_cannot_run_here_is_left_out_by_name(run):
    run = run(news=lambda outcome: None)
    run.part = replace(run.part, missing=lambda: "no such package")
    assert run.within(60).left_out == dict.fromkeys(("good", "breaks", "hangs", "fails", "last"), "no such package")


def test_a_process_that_never_begins_ends_the_part(run):
    outcome = run(news=lambda outcome: None)
    outcome.worker = (sys.executable, "-c", "raise SystemExit(5)")
    assert "ended with status 5" in outcome.within(60).failed["good"]


def test_the_command(tmp_path, monkeypatch, capfd):
    """Two parts from the command to the files; a part without time says so."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert gpu.main(["--smoke", "--parts", "ceilings", "gram", "--minutes", "1", "--commit", "abc"]) == 0
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert content["commit"] == "abc"
    assert {"ceiling.copy_gbs", "ceiling.bf16_tflops", "gram_over_library.64"} <= content["cells"].keys()
    assert gpu.main(["--smoke", "--parts", "host", "--minutes", "0.001", "--commit", "abc"]) == 0
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert content["left_out"] == {"host": "the time was up"}
    assert "gram_over_library.64" in content["cells"]
    assert "left out (the time was up): host" in capfd.readouterr().out


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no GPU found" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", "0"])


IMPORTS = """
import builtins, sys
found, real = set(), builtins.__import__

def noted(name, scope=None, *more, **others):
    if (scope or {}).get("__name__", "").partition(".")[0] in ("sieve", "sieve_kernels", "bench"):
        found.add(name.partition(".")[0])
    return real(name, scope, *more, **others)

builtins.__import__ = noted
import bench.gpu.__main__, bench.gpu.worker
few = found - {*sys.stdlib_module_names, ""}
import bench.gpu.contestants
print(sorted(few), sorted(found - {*sys.stdlib_module_names, ""}), sep="\\n")
"""


def test_little_is_imported():
    """The machine of a GPU has torch and Triton, NumPy and SciPy; transformers if the decoder is to be measured."""
    output = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout
    few, more = (set(json.loads(line.replace("'", '"'))) for line in output.splitlines()[-2:])
    assert few <= {"torch", "numpy", "scipy", "triton", "sieve", "sieve_kernels", "bench"}
    assert more <= few | {"transformers", "yaml"}  # which transformers needs too
