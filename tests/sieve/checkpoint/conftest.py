"""A pruned model on disk, for all tests of checkpoints."""

import pytest

from sieve.checkpoint.folder import save
from tests.tiny_models import tiny_pruned, tiny_tokenizer


@pytest.fixture(scope="module")
def pivoted_folder(tmp_path_factory):
    """The same with pivoted pairs."""
    path = tmp_path_factory.mktemp("saved") / "pivoted"
    save(tiny_pruned("llama", pivoted=True), tiny_tokenizer(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pruned Llama; tests copy it before they change it."""
    path = tmp_path_factory.mktemp("saved") / "model"
    save(tiny_pruned("llama"), tiny_tokenizer(), path)
    return path
