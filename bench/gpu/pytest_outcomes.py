"""A plugin of pytest that writes what becomes of each test at once, so that it is known however the run ends.

A JSON line each in the file that SIEVE_TEST_LOG names: {"total": n}, {"started": true, "test": …} and
{"outcome": "passed" | "failed" | "skipped", "test": …, "message": …}. Of parallel runs the controller writes.

A test after which the device serves no more ends its process, so that it fails alone: pytest-xdist starts another.
"""

import json
import os
import time

import pytest
import torch

from bench.gpu.device import serves

_log = None
_failed = False


def pytest_configure(config: pytest.Config) -> None:
    global _log
    path = os.environ.get("SIEVE_TEST_LOG")
    if path and not hasattr(config, "workerinput"):
        _log = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - until the process ends


def pytest_collection_finish(session: pytest.Session) -> None:
    _write(total=len(session.items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node, ids) -> None:
    _write(total=len(ids))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(test=report.nodeid, outcome="failed", message=_message(report), collected=False)


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(test=nodeid, started=True)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test's outcome is that of its call, or of the phase that failed or was skipped."""
    global _failed
    _failed = _failed or report.failed
    if report.when == "call" or report.outcome != "passed":
        _write(test=report.nodeid, outcome=report.outcome, message=_message(report) if report.failed else "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None):
    """Look at the device when a test has failed, and what became of it was told."""
    global _failed
    _failed = False
    result = yield
    if _failed and torch.cuda.is_available() and not serves(torch.device("cuda")):
        if hasattr(item.config, "workerinput"):
            time.sleep(1)  # until the controller has heard of the test
            os._exit(1)
        item.session.shouldstop = f"the device serves no more after {item.nodeid}"
    return result


def _message(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash else report.longrepr).strip().splitlines()
    return (lines[0] if crash else lines[-1])[:300] if lines else ""


def _write(**event) -> None:
    if _log is not None:
        _log.write(json.dumps(event) + "\n")
