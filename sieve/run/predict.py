"""`sieve predict` and `sieve generate`: a stored model's answers to the rows of a file, and to one prompt."""

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sieve.errors import InputError
from sieve.models.config import find_model
from sieve.run.evaluate import own_recipe, own_task
from sieve.tasks import Task, load_task
from sieve.tasks.example import template_fields
from sieve.tasks.formats import SUFFIXES, Record, as_row, json_lines, json_object, records
from sieve.tasks.row import Row
from sieve.utils import progress, streams
from sieve.utils.files import atomic_file, require_new
from sieve.utils.messages import shorten

STANDARD_INPUT = "-"
ANSWER, PROBABILITY, PROBABILITIES = "prediction", "probability", "probabilities"
"""The fields that are added to a row; tasks of type generation add only the first."""
_OUTPUTS = (".jsonl", ".csv")
_Write = Callable[[Mapping[str, Any]], None]


def predict_file(
    source: str,
    file: str,
    output: str | Path | None = None,
    task: str | None = None,
    data: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Answer the task's question for each row of a file; returns the number of rows. Order and all fields are kept.

    All rows of a file (not of standard input) are checked before the model is loaded, so that a row that cannot be
    asked costs no work.

    Args:
        source: a model, usually a pruned folder, whose task and seed are the defaults.
        file: .jsonl, .csv or .parquet; "-" reads JSON lines from standard input.
        output: new .jsonl or .csv file, which appears when it is complete; None prints JSON lines as they are answered.
        data: file or folder instead of the task's, from which few-shot examples are taken, if it has such.
    """
    # Find mistakes in the arguments before the slow imports below.
    find_model(source)
    output = None if output is None else _require_output(output)
    recipe = own_recipe(source)
    loaded = load_task(task or own_task(source, recipe), data)
    from sieve.evaluation.predict import predict_rows, require_answers
    from sieve.models.loading import load_model

    # Look at all rows and the few-shot examples before the model is loaded.
    require_answers(loaded)
    added = [ANSWER] if loaded.type == "generation" else [ANSWER, PROBABILITY, PROBABILITIES]
    number, names = (None, None) if file == STANDARD_INPUT else _look_through(loaded, file, added)
    seed = recipe.get("seed", 0) if seed is None else seed
    loaded.solved_examples(seed)
    model, tokenizer = load_model(source, dtype, device, trust_remote_code)
    # Answer row by row, so that memory does not grow with the file.
    answered = 0
    with _writer(output, names, added) as write, progress.bar("predict", number, "rows") as advance:
        for one in predict_rows(model, tokenizer, loaded, _rows(file, added), seed=seed):
            row = {**one.row, ANSWER: one.answer}
            if one.probabilities:
                row |= {PROBABILITY: one.probabilities[one.answer], PROBABILITIES: one.probabilities}
            write(row)
            answered += 1
            advance(1)
            if output is None and streams.output_error() is not None:
                # Standard output has no reader any more.
                break
    return answered


def generate(
    source: str,
    text: str,
    task: str | None = None,
    against: str | None = None,
    data: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """Model → the answer that it writes. `text`: the value of the prompt's only field, or a JSON object of all fields.

    The task decides how a prompt looks, where answers end and how long they are; it must be of type generation.
    """
    for name in filter(None, (source, against)):
        find_model(name)
    recipe = own_recipe(source)
    loaded = load_task(task or own_task(source, recipe), data)
    if loaded.type != "generation":
        raise InputError(
            f"{loaded.where} is of type {loaded.type}: its models are not made to write text; "
            "`sieve predict` answers its questions"
        )
    row = _asked(loaded, text)
    from sieve.evaluation.predict import predict
    from sieve.models.loading import load_model

    answers = {}
    for name in filter(None, (source, against)):
        model, tokenizer = load_model(name, dtype, device, trust_remote_code)
        (one,) = predict(model, tokenizer, loaded, [row], seed=recipe.get("seed", 0) if seed is None else seed)
        answers[name] = one.answer
    return answers


def _asked(task: Task, text: str) -> dict[str, Any]:
    if task.messages and not text.lstrip().startswith("{"):
        return {task.messages: [{"role": "user", "content": text}]}
    names = [task.messages] if task.messages else template_fields(task.prompt, task.where)
    if not task.messages and len(names) == 1 and "." not in names[0]:
        return {names[0]: text}
    fields = ", ".join(f'"{name}": …' for name in names)
    if not text.lstrip().startswith("{"):
        raise InputError(f"the prompt of {task.where} has {len(names)} fields: give them as JSON, {{{fields}}}")
    return json_object(text, "the prompt")


def _require_output(output: str | Path) -> Path:
    if Path(output).suffix.lower() not in _OUTPUTS:
        raise InputError(f"cannot write {output}: predictions are written to {' or '.join(_OUTPUTS)} files")
    return require_new(output)


def _look_through(task: Task, file: str, added: list[str]) -> tuple[int, list[str]]:
    """The number of rows of a file, and the names of all fields; InputError for a row that cannot be asked."""
    from sieve.evaluation.predict import chunks
    from sieve.tasks.example import render_unanswered

    number, names = 0, {}
    for part in chunks(_rows(file, added)):
        render_unanswered(task, [row for _, row in part])
        number += len(part)
        for values, _ in part:
            names |= dict.fromkeys(values)
    if not number:
        raise InputError(f"{file} holds no rows")
    return number, list(names)


def _rows(file: str, added: list[str]) -> Iterator[tuple[dict[str, Any], Row]]:
    """Rows as they are in the file and as a task reads them; InputError if a row has a field that the answer adds."""
    for values, where in _records(file):
        for name in added:
            if name in values:
                raise InputError(f"{where} already has a field {name!r}, which the answer would replace: rename it")
        yield values, as_row(values, where)


def _records(file: str) -> Iterator[Record]:
    if file != STANDARD_INPUT:
        path = Path(file).expanduser()
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"cannot read {file}: rows must be in one of {', '.join(SUFFIXES)}, or - for JSON lines")
        yield from records(path)
        return
    try:
        yield from json_lines(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8"), "standard input")
    except UnicodeDecodeError:
        raise InputError("cannot read standard input: it is not UTF-8: save it in that encoding") from None


@contextmanager
def _writer(output: Path | None, names: list[str] | None, added: list[str]) -> Iterator[_Write]:
    """A function that writes one row to the file, or prints it."""
    if output is None:
        yield lambda row: print(_json(row))
        return
    with ExitStack() as stack:
        path = stack.enter_context(atomic_file(output))
        file = stack.enter_context(path.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
        if output.suffix.lower() == ".jsonl":
            yield lambda row: print(_json(row), file=file)
        else:
            yield _csv_writer(file, names, added)


def _csv_writer(file: io.TextIOBase, names: list[str] | None, added: list[str]) -> _Write:
    """Writes rows under a header of all fields, or of the first row's fields if the others are not known."""
    writer: csv.DictWriter | None = None

    def write(row: Mapping[str, Any]) -> None:
        nonlocal writer
        if writer is None:
            writer = csv.DictWriter(file, [*(names or [name for name in row if name not in added]), *added])
            writer.writeheader()
        unknown = next((name for name in row if name not in writer.fieldnames), None)
        if unknown is not None:
            raise InputError(f"a row has the field {shorten(unknown)}, which the first row lacks: write .jsonl instead")
        writer.writerow({name: _cell(value) for name, value in row.items()})

    return write


def _cell(value: Any) -> str:
    """Texts as they are; anything else as JSON, so that it can be read back."""
    plain = _plain(value)
    return "" if plain is None else plain if isinstance(plain, str) else json.dumps(plain)


def _json(row: Mapping[str, Any]) -> str:
    # ASCII works with every encoding of the terminal, and has no control characters.
    return json.dumps(_plain(row))


def _plain(value: Any) -> Any:
    """The value for JSON: NaN, which tables use for a missing value, becomes null; a time becomes a text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)
