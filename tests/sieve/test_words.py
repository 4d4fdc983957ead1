"""One word for one thing: the names that CONTRIBUTING.md has retired stay out of the driver's code."""

import ast
import io
import re
import tokenize
from pathlib import Path

import sieve

ROOT = Path(sieve.__file__).parent
RETIRED = {
    "Slices": "ElasticModel",
    "SlicedLinear": "ElasticLinear",
    "sliced": "elastic",
    "set_many": "set_batch",
    "Team": "CandidateBatch",
    "TOGETHER": "CANDIDATE_BATCH_SIZE",
    "StrangeError": "UncapturableError",
    "settle": "fit_score_calibration",
    "lucky": "fails_elsewhere",
    "merit": "utility",
    "contrast": "choice_logprob",
    "race": "successive_halving",
    "_squeeze": "_bisect_size",
    "readers_of_one_input": "group_layers_by_input",
    "heights_of": "member_out_features",
    "mark_masked": "write_mask_config",
    "Unfinished": "ResumableRun",
    "BlockWise": "BlockwiseRunner",
    "Walk": "PairedStates",
    "walk": "schedule",
    "teams": "batches_of",
    "Graphs": "GraphedBlocks",
    "Seat": "WorkerSlot",
    "_Seat": "_WorkerSlot",
    "_hired": "_spawn",
    "_dismiss": "_kill",
    "Shares": "CandidateQueue",
    "Rehearsal": "DryRun",
    "asked_of": "task_identity",
}
"""Retired name → the one that is used."""
PEOPLE = re.compile(r"\b(whoever|somebody|nobody|everybody|stands? beside)\b", re.IGNORECASE)
"""What neither docstrings nor comments say: code has callers, processes and candidates, and it names them."""
UNCLEAR = re.compile(r"\b(whoever|somebody|nobody|anew|stands? beside|in the place of|alike|lucky)\b", re.IGNORECASE)
"""What no message to a user says: plain words do as well."""


def names(path: Path) -> set[str]:
    """The identifiers of a file: what its strings and comments say is not looked at."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_retired_names_stay_out():
    found = [
        f"{path.relative_to(ROOT)}: {name}, which is {RETIRED[name]} now"
        for path in ROOT.rglob("*.py")
        for name in sorted(names(path) & RETIRED.keys())
    ]
    assert found == []


def test_prose_names_what_it_is_about():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in ROOT.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (match := PEOPLE.search(line))
    ]
    assert found == []


def test_a_retired_name_shows(tmp_path):
    (tmp_path / "code.py").write_text('def settle(): "of a race"\n')
    assert names(tmp_path / "code.py") & RETIRED.keys() == {"settle"}


def messages(code: str) -> list[str]:
    """The texts of a file but for docstrings: what its users may read."""
    tree = ast.parse(code)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text.value for text in texts if id(text) not in docs and " " in text.value]


def test_messages_are_in_plain_words():
    found = [
        f"{path.relative_to(ROOT)}: {text!r}"
        for path in ROOT.rglob("*.py")
        for text in messages(path.read_text())
        if UNCLEAR.search(text)
    ]
    assert found == []


def test_an_unclear_message_shows():
    texts = messages('"""Of nobody."""\nraise InputError(f"{x} is of nobody")\n')
    assert texts == [" is of nobody"]
    assert UNCLEAR.search(texts[0])


def test_contributing_lists_every_room():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    rooms = [path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if not re.search(rf"`(sieve/)?{room}/`", text)] == []
