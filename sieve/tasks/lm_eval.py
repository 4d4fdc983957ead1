"""Tasks of lm-evaluation-harness, read from their YAML files: `lm_eval:arc_easy`, `lm_eval:my_task.yaml`.

The library is not imported; only the task files in its folder are read. Templates are rendered by Jinja's sandbox.
Files that name Python code are refused, and so are tasks that Sieve would score differently.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sieve.errors import InputError
from sieve.tasks.row import Row
from sieve.utils.messages import listed, one_line, shorten
from sieve.utils.safe_yaml import read_yaml

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

PREFIX = "lm_eval:"
QUERY, CHOICES, GOLD, TARGET = "query", "choices", "gold", "target"
"""Fields of the rows that are made from a task's documents."""

# Longest chain of files that include one another.
_INCLUDES = 10
# A template may not make a text longer than this many characters.
_LARGEST = 1 << 20
_SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
_METRICS = {"exact_match": "exact_match", "bleu": "bleu", "chrf": "chrf", "rougeL": "rouge_l", "rouge_l": "rouge_l"}
# Texts of end-of-text tokens: answers end there anyway.
_ENDS = re.compile(r"</?s>|<[|｜].*[|｜]>|<eos>|<end_of_turn>")
_READ = """
task dataset_path dataset_name dataset_kwargs output_type training_split validation_split test_split doc_to_text
doc_to_target doc_to_choice description target_delimiter fewshot_delimiter generation_kwargs metric_list filter_list
num_fewshot include
""".split()  # noqa: SIM905 - one word a key
_OF_NO_CONCERN = """
tag group task_alias metadata should_decontaminate doc_to_decontamination_query fewshot_split fewshot_config repeats
""".split()  # noqa: SIM905


def read_config(source: str) -> dict[str, Any]:
    """The keys of a task: a local .yaml file, or the name of one of the installed library's.

    Raises: InputError where there is none, it names code, or has a key whose meaning Sieve does not know.
    """
    path = Path(source).expanduser() if _is_file(source) else _installed(source)
    values = _with_included(path)
    for key in values:
        if key not in (*_READ, *_OF_NO_CONCERN):
            raise InputError(f"{path}: the key {shorten(key)} of lm-eval's tasks is not supported here")
    if not isinstance(values.get("task"), str):
        raise InputError(f"{path} is a group of tasks, or no task: name one task of lm-eval")
    return values


def task_keys(source: str) -> dict[str, Any]:
    """The arguments of the `Task` that asks and judges as the lm-eval task does; errors as of `read_config`."""
    config = read_config(source)
    where = f"{PREFIX}{config['task']}"
    place = str(Path(source).expanduser().absolute()) if _is_file(source) else source
    keys = {"name": config["task"], "data": {"lm_eval": place}, "prompt": f"{{{QUERY}}}"}
    kind = config.get("output_type", "generate_until")
    if kind == "multiple_choice":
        metrics = [one.get("metric") for one in config.get("metric_list") or []]
        normalize = "length" if "acc_norm" in metrics and "acc" not in metrics else "none"
        keys |= {"type": kind, "choices": CHOICES, "answer": GOLD, "answer_is": "index", "normalize": normalize}
    elif kind == "generate_until":
        keys |= {"type": "generation", "answer": TARGET} | _generation(config, where)
    elif kind == "loglikelihood":
        keys |= {"type": "perplexity", "answer": TARGET}
    elif kind == "loglikelihood_rolling":
        keys |= {"type": "perplexity", "prompt": f"{{{TARGET}}}"}
    else:
        raise InputError(f"{where}: the output_type {shorten(kind)} is not supported here")
    shots = config.get("num_fewshot") or 0
    if shots and (config.get("description") or config.get("fewshot_delimiter", "\n\n") != "\n\n"):
        raise InputError(f"{where}: num_fewshot beside a description or a fewshot_delimiter is not supported here")
    return keys | ({"shots": shots} if shots and keys["type"] != "perplexity" else {})


def source_of(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The source of a task's documents: the keys of a task file's `dataset`, and the user's own data files."""
    where = f"{PREFIX}{config['task']}"
    given = config.get("dataset_kwargs") or {}
    # A data set's own code is never run, whatever a file asks.
    unknown = [key for key in given if key not in ("data_files", "data_dir", "trust_remote_code")]
    if unknown or not isinstance(config.get("dataset_path"), str):
        raise InputError(f"{where}: {'dataset_path' if not unknown else shorten(unknown[0])} cannot be read here")
    source = {"dataset": config["dataset_path"]}
    if isinstance(config.get("dataset_name"), str):
        source["config"] = config["dataset_name"]
    more = {key: _beside(given[key], folder) for key in ("data_files", "data_dir") if key in given}
    return source, more


def rows_of(config: Mapping[str, Any], pools: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The documents of each of the task's splits as rows of `QUERY` and what answers it.

    Raises: InputError naming the document that cannot be rendered, or has no label.
    """
    where = f"{PREFIX}{config['task']}"
    named = {pool: config[key] for pool, key in _SPLITS.items() if config.get(key)}
    known = {pool: pools[name] for pool, name in named.items() if name in pools}
    if set(pools) == {""}:
        known = {"": pools[""]}
    if not known:
        raise InputError(f"{where}: the data has the splits {listed(pools)}, and none of {listed(named.values())}")
    made = {pool: [_row(config, row, where) for row in rows] for pool, rows in known.items()}
    return made if len(made) > 1 else dict.fromkeys(("",), *made.values())


def _row(config: Mapping[str, Any], row: Row, where: str) -> Row:
    values, kind = dict(row.values), config.get("output_type", "generate_until")
    where = f"{where}: {row.where}"
    if kind == "loglikelihood_rolling":
        return Row({TARGET: str(_value(config.get("doc_to_target"), values, where))}, row.where)
    query = _value(config.get("doc_to_text"), values, where)
    if kind == "multiple_choice" and (isinstance(query, int) or str(query).strip().isdigit()):
        raise InputError(f"{where}: its contexts vary and what follows them is fixed, which is not supported here")
    query = f"{_value(config.get('description') or '', values, where, field=False)}{query}"
    target = _value(config.get("doc_to_target"), values, where)
    if kind != "multiple_choice":
        target = _listed(target) if kind == "generate_until" else target
        return Row({QUERY: query, TARGET: target if isinstance(target, list) else str(target)}, row.where)
    choices = _choices(config.get("doc_to_choice"), values, where)
    delimiter = config.get("target_delimiter", " ")
    texts = [f"{delimiter}{text}" for text in choices]
    if query and not query[-1].isspace() and not all(text[:1].isspace() for text in texts):
        raise InputError(f"{where}: a target_delimiter without white space is not supported here")
    return Row({QUERY: query, CHOICES: texts, GOLD: _gold(target, choices, where)}, row.where)


def _gold(target: Any, choices: Sequence[str], where: str) -> int:
    """The place of the right choice."""
    if isinstance(target, str):
        target = int(target) if re.fullmatch(r"\s*-?\d+\s*", target) else target
    if isinstance(target, str) and target in choices:
        target = choices.index(target)
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(choices):
        hidden = ": labels of this split are hidden, use data that has them" if target in (-1, "") else ""
        raise InputError(f"{where} has the label {shorten(target)}, none of its {len(choices)} choices{hidden}")
    return target


def _choices(template: Any, values: Mapping[str, Any], where: str) -> list[str]:
    if isinstance(template, list):
        return [str(_value(one, values, where, field=False)) for one in template]
    found = _value(template, values, where)
    found = _listed(found) if isinstance(found, str) else found
    if isinstance(found, Mapping):
        found = list(found.values())
    if not isinstance(found, list | tuple) or len(found) < 2:
        raise InputError(f"{where}: doc_to_choice must give a list of choices, got {shorten(found)}")
    return [str(one) for one in found]


def _value(template: Any, values: Mapping[str, Any], where: str, field: bool = True) -> Any:
    """The document's field of this name, or else the rendered template."""
    if isinstance(template, int) and not isinstance(template, bool):
        return template
    if not isinstance(template, str):
        raise InputError(f"{where}: {shorten(template)} is no template or name of a field")
    if field and template in values:
        return values[template]
    try:
        return _templates().from_string(template).render(**values)
    except Exception as error:
        # A template can raise any error.
        raise InputError(f"{where}: the template {shorten(template)} fails: {one_line(error)}") from None


def _listed(text: Any) -> Any:
    """A list that a template has written as text."""
    if isinstance(text, str) and text.lstrip().startswith("["):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text
        return found if isinstance(found, list) else text
    return text


def _generation(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """How answers are written and judged."""
    given = config.get("generation_kwargs") or {}
    if given.get("do_sample") is True or (given.get("temperature") or 0) > 0:
        raise InputError(f"{where}: its answers are drawn at random, but Sieve only writes the likeliest ones")
    until = given.get("until", "\n\n")
    ends = [text for text in ([until] if isinstance(until, str) else until) if not _ENDS.fullmatch(str(text))]
    if len(ends) > 1:
        raise InputError(f"{where}: answers end at {listed(map(shorten, ends))}; here they can end at one text alone")
    filters = [step.get("function") for one in config.get("filter_list") or [] for step in one.get("filter") or []]
    foreign = [name for name in filters if name not in ("take_first", "remove_whitespace")]
    metrics = config.get("metric_list") or [{"metric": "exact_match"}]
    judged = next((one for one in metrics if one.get("metric") in _METRICS and not one.get("regexes_to_ignore")), None)
    if foreign or judged is None:
        what = f"filter {shorten(foreign[0])}" if foreign else f"metric {shorten(metrics[0].get('metric'))}"
        raise InputError(f"{where}: its {what} is not supported here: write a task file with metric: module:function")
    plain = not (judged.get("ignore_case") or judged.get("ignore_punctuation"))
    return {
        "metric": _METRICS[judged["metric"]],
        "normalise": "none" if plain else "squad",
        "max_new_tokens": given.get("max_gen_toks", 256),
        "stop": ends[0] if ends else None,
    }


def _is_file(source: str) -> bool:
    return source.endswith((".yaml", ".yml"))


def _with_included(path: Path, depth: int = 0) -> dict[str, Any]:
    if depth > _INCLUDES:
        raise InputError(f"{path} is included by itself")
    try:
        values = read_yaml(path, "lm-eval's task")
    except InputError as error:
        if "!function" in str(error):
            raise InputError(
                f"{path} names Python code (!function), which is not run: write prompt, choices and answer in a task "
                "file of your own"
            ) from None
        raise
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of keys such as task, dataset_path and doc_to_text")
    included = values.pop("include", None) or []
    before: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        before |= _with_included(path.parent / str(name), depth + 1)
    return before | values


def _installed(name: str) -> Path:
    """The file of a task of the installed library."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"{PREFIX}{name}: lm-eval is not installed; run: pip install lm-eval, or name a .yaml file of its kind"
        )
    named = re.compile(rf"^[\"']?task[\"']?:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    files = sorted(Path(next(iter(found.submodule_search_locations)), "tasks").rglob("*.yaml"))
    # Most files are named as their task.
    for file in sorted(files, key=lambda file: file.stem != name):
        if named.search(file.read_text(encoding="utf-8", errors="replace")):
            return file
    raise InputError(f"lm-eval has no task {shorten(name)}: `lm_eval ls tasks` lists them")


def _beside(value: Any, folder: Path) -> Any:
    """Data files with their paths relative to the task's file."""
    if isinstance(value, Mapping):
        return {name: _beside(one, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [_beside(one, folder) for one in value]
    return str(folder / str(value))


@cache
def _templates() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Templates(ImmutableSandboxedEnvironment):
        """A template environment that can read a document, but cannot run code or build huge texts."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(one) if isinstance(one, str | list | tuple) else abs(one) for one in (left, right)]
            if operator == "**" or sizes[0] * sizes[1] > _LARGEST:
                raise SecurityError(f"{operator} of large values")
            return super().call_binop(context, operator, left, right)

    made = Templates(undefined=StrictUndefined, keep_trailing_newline=True)
    made.filters["regex_replace"] = lambda text, pattern, new: re.sub(pattern, new, text)
    return made
