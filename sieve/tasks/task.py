"""What a task is, and reading one from YAML."""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sieve.errors import InputError
from sieve.tasks import lm_eval
from sieve.tasks.answers import ANSWER_IS
from sieve.tasks.chat import answers_of
from sieve.tasks.data import absolute_source, check_source, load_pools, user_path
from sieve.tasks.example import (
    Example,
    check_fields,
    has_distinct_choices,
    render,
    template_fields,
    with_shots,
    without_empty,
)
from sieve.tasks.splits import DEFAULT_SIZES, check_seed, check_sizes, split
from sieve.utils.messages import shorten
from sieve.utils.safe_yaml import read_yaml

_BUILTIN = Path(__file__).parent / "builtin"
_ALLOWED = {
    "type": ("multiple_choice", "generation", "perplexity"),
    "normalize": ("none", "length", "prior"),
    "normalise": ("none", "squad", "numeric"),
    "truncate": ("left", "middle"),
}
_METRICS = ("exact_match", "contains", "f1", "rouge_l", "bleu", "chrf")
_OWN_METRIC = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
# If this variable is 1, task files may name functions of the user's own.
ALLOW_CODE = "SIEVE_ALLOW_CODE"
# Keys that have a meaning for one type of task only.
_ONLY_FOR = {
    "choices": "multiple_choice",
    "answer_is": "multiple_choice",
    "normalize": "multiple_choice",
    "metric": "generation",
    "normalise": "generation",
    "max_new_tokens": "generation",
    "stop": "generation",
}


@dataclass(frozen=True)
class Task:
    """A task, checked when it is made. In YAML `split_sizes` is written `splits`, and `file` does not exist.

    name: for reports; a YAML file's own name unless given.
    type: "multiple_choice" | "generation" | "perplexity".
    data: a .jsonl/.csv/.parquet file or a folder of split files (relative to the task's file),
        {dataset:, config:, split:} for `datasets`, {package:, path:} inside an installed package,
        {builtin:} for ours, or the rows themselves.
    prompt: template with {fields}; for perplexity the text itself, or with `answer` what stands before it.
    messages: instead of prompt and answer, the name of a field with a conversation, which the tokenizer's chat
        template renders. Its last turn is the answer of a generation question; for perplexity all answers are scored.
    choices: templates of the choices (their leading space included), or the name of a field that holds a list or
        lettered lines.
    answer: name of the field with the right answer: index, letter or text of a choice; for generation one text or
        a list of texts, each of them right; for perplexity the text that is scored, where a prompt stands before it.
    answer_is: how the answer field of a choice is read: "index", "text" or "letter"; None where only one way fits.
    group: names of fields, or one name: rows that share a value of one of them are in one split.
    description: one line for lists.
    normalize: of a choice's log-likelihood: "none", "length" (per character) or "prior" (less that after a prompt
        without content).
    shots: solved examples before every prompt, taken out of the calibration split.
    split_sizes: fraction (float) or count (int) for calibration, fitness, validation and test.
    chat: wrap prompts by the tokenizer's chat template.
    truncate: what a prompt that is too long for the model's context loses: "left" its beginning, "middle" its middle.
    metric: of a generated answer: "exact_match" | "contains" | "f1" | "rouge_l" | "bleu" | "chrf" | an own function
        (answer, references) → score in [0, 1], as "module:function" or itself.
    normalise: of answers and references before words are compared: "none" | "squad" | "numeric".
    max_new_tokens, stop: where generation ends at the latest; `stop` is a text, or None for end-of-text alone.
    file: where the task was read from.
    """

    name: str
    type: str
    data: Any
    prompt: str = ""
    choices: tuple[str, ...] | str = ()
    answer: str = ""
    description: str = ""
    normalize: str = "none"
    shots: int = 0
    split_sizes: Mapping[str, float | int] = field(default_factory=lambda: dict(DEFAULT_SIZES))
    chat: bool = False
    truncate: str = "left"
    metric: str | Callable[[str, Sequence[str]], float] = "exact_match"
    normalise: str = "squad"
    max_new_tokens: int = 32
    stop: str | None = "\n"
    answer_is: str | None = None
    group: Sequence[str] = ()
    messages: str = ""
    file: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.choices, list):
            object.__setattr__(self, "choices", tuple(self.choices))
        if isinstance(self.group, str | list):
            object.__setattr__(self, "group", (self.group,) if isinstance(self.group, str) else tuple(self.group))
        self._check()

    @property
    def is_chat(self) -> bool:
        """Whether prompts are put into the tokenizer's chat template."""
        return self.chat or bool(self.messages)

    @property
    def has_prompts(self) -> bool:
        """Whether a prompt stands before the scored text; if not, whole texts are scored."""
        return self.type != "perplexity" or bool(self.answer or self.messages)

    @property
    def where(self) -> str:
        """The task's name in messages: its file, or else its name."""
        return str(self.file) if self.file and self.file.parent != _BUILTIN else f"task {shorten(self.name)}"

    def splits(self, seed: int = 0) -> dict[str, list[Example]]:
        """The examples: "calibration", "fitness", "validation", "test" → disjoint lists, in an order drawn by `seed`.

        Deterministic in (data, seed); the same question, or rows of one group, never stand in two splits.

        Raises: InputError for data that cannot be read, unknown fields, a right answer that is not among the choices,
            an empty split, or an answer that is the same for all examples.
        """
        shots, parts = self._parts(seed)
        return (
            {name: [with_shots(example, shots) for example in part] for name, part in parts.items()} if shots else parts
        )

    def solved_examples(self, seed: int = 0) -> list[Example]:
        """The few-shot examples before every prompt of `splits(seed)`; without shots no data is read."""
        return self._parts(seed)[0] if self.shots else []

    def _parts(self, seed: int) -> tuple[list[Example], dict[str, list[Example]]]:
        """Few-shot examples, and the examples of each split without them."""
        check_seed(seed)
        folder = self.file.parent if self.file else Path()
        pools = load_pools(self.data, folder, self.where)
        if not self.has_prompts:
            pools = without_empty(self, pools)
        elif self.messages:
            rows = [row for some in pools.values() for row in some]
            check_fields(self, rows)
            pools = {name: [one for row in rows for one in answers_of(self, row)] for name, rows in pools.items()}
        if self.file and self.file.parent == _BUILTIN:
            pools = {name: [row for row in rows if has_distinct_choices(self, row)] for name, rows in pools.items()}
        rendered = render(self, [row for rows in pools.values() for row in rows])
        self._check_answers(rendered)
        remaining = iter(rendered)
        examples = {name: [next(remaining) for _ in rows] for name, rows in pools.items()}
        parts = split(examples, self.split_sizes, seed, self.where)
        shots, rest = parts["calibration"][: self.shots], parts["calibration"][self.shots :]
        if not rest:
            raise InputError(f"{self.where}: the {self.shots} shots leave no calibration example: lower shots")
        return shots, {**parts, "calibration": rest}

    def to_dict(self) -> dict[str, Any]:
        """The keys of the task's file, with absolute paths in `data`; `load_task` makes the same task from them."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "file"}
        values = {key: value for key, value in values.items() if _ONLY_FOR.get(key, self.type) == self.type}
        del values["prompt" if self.messages else "messages"]
        folder = self.file.parent if self.file else Path()
        values |= {"data": absolute_source(self.data, folder), "splits": dict(values.pop("split_sizes"))}
        if isinstance(self.choices, tuple) and "choices" in values:
            values["choices"] = list(self.choices)
        if callable(self.metric) and "metric" in values:
            values["metric"] = f"{self.metric.__module__}:{self.metric.__qualname__}"
        return values

    def _check(self) -> None:
        # Values that every type of task has: types and choices.
        for name in ("name", "prompt", "answer", "description", "messages"):
            self._require(isinstance(getattr(self, name), str), name, "a text")
        for name, values in _ALLOWED.items():
            self._require(getattr(self, name) in values, name, f"one of {', '.join(values)}")
        named = isinstance(self.metric, str) and (self.metric in _METRICS or _OWN_METRIC.fullmatch(self.metric))
        wanted = f"one of {', '.join(_METRICS)} or module:function"
        self._require(named or callable(self.metric), "metric", wanted)
        for name, least in (("shots", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            self._require(whole and value >= least, name, f"a whole number of at least {least}")
        self._require(self.answer_is in (None, *ANSWER_IS), "answer_is", f"one of {', '.join(ANSWER_IS)}")
        # The types of groups, chat, stop and splits.
        named = isinstance(self.group, tuple) and all(isinstance(name, str) and name for name in self.group)
        self._require(named, "group", "the name of a field or a list of them")
        self._require(isinstance(self.chat, bool), "chat", "true or false")
        self._require(self.stop is None or (isinstance(self.stop, str) and self.stop), "stop", "a text or null")
        self._require(isinstance(self.split_sizes, Mapping), "splits", "a fraction or count per split", "split_sizes")
        # Data and prompt have checks of their own, with messages of their own.
        check_sizes(self.split_sizes, self.where)
        check_source(self.data, self.where)
        template_fields(self.prompt, self.where)
        # What each type of task needs.
        if self.type == "multiple_choice":
            texts = isinstance(self.choices, tuple) and all(isinstance(text, str) for text in self.choices)
            named = isinstance(self.choices, str) and self.choices
            self._require(named or (texts and len(self.choices) > 1), "choices", "two or more texts or a field's name")
        if self.messages:
            self._check_messages()
        elif self.type != "perplexity":
            self._require(bool(self.answer), "answer", "the name of the field with the right answer")
        else:
            self._require(not self.chat or self.answer, "chat", "false for perplexity of whole texts")
            self._require(bool(template_fields(self.prompt, self.where)), "prompt", 'a text with fields, as "{text}"')
        if self.type == "perplexity":
            self._require(not self.shots, "shots", "0 for perplexity")
        # Options without a meaning for this type are refused: they would be ignored silently.
        for other in fields(self):
            if _ONLY_FOR.get(other.name, self.type) != self.type and getattr(self, other.name) != other.default:
                raise InputError(
                    f"{self.where}: {other.name} is only for {_ONLY_FOR[other.name]}: remove it or change type"
                )

    def _check_messages(self) -> None:
        """Check `messages`: they replace prompt and answer, and templates cannot add solved examples."""
        for key, asked in (("prompt", self.prompt), ("answer", self.answer), ("shots", self.shots)):
            if asked:
                raise InputError(f"{self.where}: messages hold the whole conversation: remove {key}")
        if self.type == "multiple_choice":
            raise InputError(f"{self.where}: messages have no choices: write prompt, choices and answer")

    def _require(self, holds: Any, key: str, wanted: str, attribute: str | None = None) -> None:
        if not holds:
            raise InputError(f"{self.where}: {key} must be {wanted}, got {shorten(getattr(self, attribute or key))}")

    def _check_answers(self, examples: Sequence[Example]) -> None:
        targets = {example.target for example in examples}
        if self.type != "perplexity" and len(targets) == 1:
            raise InputError(
                f"{self.where}: the right answer is {shorten(targets.pop().strip())} for all {len(examples)} examples: "
                f"check the answer field {shorten(self.answer)} or add data with other answers"
            )


def builtin_tasks() -> list[str]:
    """Names of the tasks that come with Sieve."""
    return sorted(path.stem for path in _BUILTIN.glob("*.yaml"))


def load_task(task: str | Path | Task, data: str | Path | None = None) -> Task:
    """A task from a built-in name, a YAML file or lm-eval's (`lm_eval:NAME`, `lm_eval:FILE`); a `Task` stays as it is.

    Args:
        data: a file or folder instead of the one that the task names.

    Raises: InputError in one line that names the file, the key and the fix.

    Example:
        >>> load_task("geography").splits()["test"][0].prompt
        'Question: In which country is the city of Douala?\\nAnswer:'
    """
    if data is not None:
        place = os.path.abspath(user_path(data, "the data"))
        if not os.path.exists(place):
            raise InputError(f"the data {place} does not exist: name a file or a folder with --data PATH")
        loaded = load_task(task)
        foreign = isinstance(loaded.data, Mapping) and "lm_eval" in loaded.data
        return replace(loaded, data={**loaded.data, "data": place} if foreign else place)
    if isinstance(task, Task):
        return task
    if str(task).startswith(lm_eval.PREFIX):
        return Task(**lm_eval.task_keys(str(task).removeprefix(lm_eval.PREFIX)))
    path = user_path(task, "the task")
    if str(task) in builtin_tasks():
        path = _BUILTIN / f"{task}.yaml"
    elif path.suffix.lower() not in (".yaml", ".yml"):
        near = difflib.get_close_matches(str(task), builtin_tasks(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(builtin_tasks())
        raise InputError(
            f"unknown task {shorten(str(task))}: {hint}The built-in tasks are {known}; your own task is a .yaml file"
        )
    return _from_mapping(read_yaml(path, "the task file"), path)


def _from_mapping(values: Any, path: Path) -> Task:
    if not isinstance(values, dict):
        raise InputError(f"the task file {path} must be a mapping of keys such as type, data and prompt")
    known = ["splits" if item.name == "split_sizes" else item.name for item in fields(Task) if item.name != "file"]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"{path}: unknown key {shorten(key)}{hint}; the known keys are {', '.join(known)}")
    for key in ("type", "data", "prompt"):
        if key not in values and not (key == "prompt" and "messages" in values):
            raise InputError(f"{path}: the key {key!r} is missing")
    own = isinstance(values.get("metric"), str) and _OWN_METRIC.fullmatch(values["metric"])
    if own and os.environ.get(ALLOW_CODE) != "1":
        raise InputError(
            f"{path}: metric {shorten(values['metric'])} names code that would run here: "
            f"set {ALLOW_CODE}=1 if you trust it"
        )
    values = {"name": path.stem, **values}
    if "splits" in values:
        values["split_sizes"] = values.pop("splits")
    return Task(**values, file=path.resolve())
