"""A pytest plugin that writes each test's outcome at once, so that outcomes survive a run that is killed.

It writes one JSON line per event to the file that SIEVE_TEST_LOG names: {"total": n}, {"started": true, "test": …} and
{"outcome": "passed" | "failed" | "skipped", "test": …, "message": …}. In parallel runs the controller writes.

If the device no longer works after a test, the process ends, so that no later test fails for it; pytest-xdist starts
another process.
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
        _log = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until the process ends


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
    """Write a test's outcome: that of its call, or of the setup or teardown that failed or was skipped."""
    global _failed
    _failed = _failed or report.failed
    if report.when == "call" or report.outcome != "passed":
        _write(test=report.nodeid, outcome=report.outcome, message=_message(report) if report.failed else "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None):
    """After a failed test has been reported, check the device."""
    global _failed
    _failed = False
    result = yield
    if _failed and torch.cuda.is_available() and not serves(torch.device("cuda")):
        if hasattr(item.config, "workerinput"):
            time.sleep(1)  # time for the controller to receive the report
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
