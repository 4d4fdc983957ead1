"""Every causal architecture of the installed transformers, as docs/families.md says."""

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.all_architectures import ARCHITECTURES, at_most, outcome, row

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
ROWS = PAGE.read_text(encoding="utf-8").splitlines()
CURRENT = f"transformers {version('transformers')} " in ROWS[2]  # another version has other architectures


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scored_pruned_saved_and_loaded(name, tmp_path):
    """The docs say what comes of it; `python -m tests.all_architectures` prints their table anew."""
    with at_most(120):
        found = outcome(name, tmp_path)
    print(row(name, found))
    assert found.result != "scored wrongly", found.detail
    if CURRENT:
        assert row(name, found) in ROWS


@pytest.mark.skipif(not CURRENT, reason="the page is of another version of transformers")
def test_the_page_names_every_architecture():
    named = [line.split(" | ")[0].removeprefix("| ") for line in ROWS if line.startswith("| ")]
    assert named[1:] == list(ARCHITECTURES)
