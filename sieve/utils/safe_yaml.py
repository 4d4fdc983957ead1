"""Reading YAML (and JSON, which is YAML too) from sources that are not trusted: tasks and recipes.

Only plain values are made. A small file cannot become a huge value: aliases count with their full size.
"""

from pathlib import Path
from typing import Any

import yaml

from sieve.errors import InputError
from sieve.utils.messages import one_line, shorten

LARGEST = 2 * 2**20
"""Largest file in bytes; with every alias written out, its values may have twice as many characters."""

DEEPEST = 50
"""Deepest nesting of lists and mappings."""


def read_yaml(path: str | Path, what: str) -> Any:
    """The value in the file.

    Args:
        what: what the file is, for messages: "the task file".

    Raises: InputError, in one line that names the file, where it cannot be read, is larger than `LARGEST` or is no
        YAML of plain values; for a key that stands twice, an alias inside what it names, and values that are large by
        their aliases or nested more than `DEEPEST` levels deep.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"cannot read {what} {path}: it is not UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError as error:
        # The path has a null character.
        raise InputError(f"cannot read {what} {path}: {error}") from None
    if len(content) > LARGEST:
        raise InputError(f"{what} {path} is larger than {LARGEST >> 20} MiB: keep examples in a data file of their own")
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise InputError(f"{what} {path} is not YAML: {one_line(error)}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # The library's reading of dates, numbers and tags lets these through: "2001-99-99", "!!bool x".
        raise InputError(f"{what} {path} is not YAML: a value cannot be read: {one_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """Refuses costly documents while their tree is built, before any value is made."""

    def __init__(self, text: str):
        super().__init__(text)
        # Anchors of the nodes that are being read.
        self._open: list[str | None] = []
        # Id of a node → characters of its values, with aliases written out.
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise _refusal(f"the alias *{shorten(event.anchor)} stands inside what it names", event)
        if len(self._open) >= DEEPEST:
            raise _refusal(f"lists and mappings are nested more than {DEEPEST} levels deep", event)
        self._open.append(event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        if id(node) not in self._sizes:
            self._measure(node)
        return node

    def _measure(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            _refuse_twins(node)
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        own = 0
        if isinstance(node, yaml.ScalarNode):
            node.value = _whole_characters(node)
            own = len(node.value)
        size = self._sizes[id(node)] = 1 + own + sum(self._sizes[id(child)] for child in children)
        if size > 2 * LARGEST:
            raise _refusal("its aliases, written out, are larger than a file may be", node)


def _refuse_twins(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise _refusal(f"the key {shorten(key.value)} stands twice", key)
            seen.add((key.tag, key.value))


def _whole_characters(node: yaml.ScalarNode) -> str:
    """The text, with JSON's pairs of escapes (`\\ud83d\\ude00`) joined to one character."""
    if node.value.isascii():
        return node.value
    try:
        return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _refusal("a text holds half a character (a lone surrogate)", node) from None


def _refusal(problem: str, at: Any) -> yaml.YAMLError:
    return yaml.YAMLError(f"{problem} (line {at.start_mark.line + 1})")
