"""Disjoint, deterministic splits.

Examples are ordered by a hash of their question and the seed, so that the order in which the data is stored does not
matter. Equal questions, and examples of one group, stay together: they never stand on both sides of a border. Where
questions have the same few answers (labels), every split has each of them in proportion.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from sieve.errors import InputError
from sieve.tasks.example import Example
from sieve.utils import progress
from sieve.utils.messages import listed, shorten

LARGEST_SEED = 2**32 - 1
# Up to this many different written answers count as labels; with more, answers are free texts.
MOST_LABELS = 20
SPLITS = ("calibration", "fitness", "validation", "test")
DEFAULT_SIZES: Mapping[str, float | int] = {"calibration": 0.4, "fitness": 0.2, "validation": 0.2, "test": 0.2}

# Names of the split files that each split is taken from; the first file that exists is used.
# If possible, the test split has no data that the model was developed on, and a test file is used for tests only.
_TRAIN, _DEV, _TEST = ("train", "training"), ("validation", "valid", "val", "dev", "development"), ("test", "eval")
_SOURCES = {
    "calibration": ("calibration", *_TRAIN, "fitness", *_DEV, *_TEST),
    "fitness": ("fitness", *_TRAIN, "calibration", *_DEV, *_TEST),
    "validation": (*_DEV, *_TRAIN, "fitness", "calibration", *_TEST),
    "test": (*_TEST, *_DEV, *_TRAIN, "fitness", "calibration"),
}


def check_sizes(sizes: Mapping[str, float | int], where: str) -> None:
    """InputError unless there is a fraction (float) or a count (int) for each split."""
    for name in sizes:
        if name not in SPLITS:
            raise InputError(
                f"{where}: unknown split {shorten(name)} in splits; the known splits are {', '.join(SPLITS)}"
            )
    for name in SPLITS:
        size = sizes.get(name)
        # Not `size <= 0`: NaN is neither above 0 nor below.
        if isinstance(size, bool) or not isinstance(size, int | float) or not size > 0:
            raise InputError(f"{where}: splits needs a fraction or a count above 0 for {name!r}, got {shorten(size)}")
    fractions = sum(size for size in sizes.values() if isinstance(size, float))
    if fractions > 1 + 1e-9:
        raise InputError(f"{where}: the fractions in splits add up to {fractions:g}: make it at most 1")


def check_split(name: str) -> None:
    """InputError unless it is the name of a split."""
    if name not in SPLITS:
        raise InputError(f"unknown split {shorten(name)}: choose one of {', '.join(SPLITS)}")


def check_seed(seed: int) -> None:
    """InputError unless every random number generator accepts the seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"the seed must be a whole number from 0 to {LARGEST_SEED:,}, got {shorten(seed)}")


def split(
    pools: Mapping[str, Sequence[Example]], sizes: Mapping[str, float | int], seed: int, where: str
) -> dict[str, list[Example]]:
    """Divide the pools (split file → examples; "" for one that has none) among the four splits.

    Splits that share a pool share it in proportion to their fractions; a count is taken as it is. Fractions that add
    up to less than 1 leave the rest of every pool unused. A question (or group) that is in several pools is used
    only in the pool of the latest split (first test, then validation, …).

    Raises: InputError for a split that would be empty or a count that the data cannot fill.
    """
    source = {name: _source(name, pools, where) for name in SPLITS}
    labels = _labels([example for pool in pools.values() for example in pool])
    used: set[str] = set()
    parts: dict[str, list[Example]] = {}
    share = min(1.0, sum(size for size in sizes.values() if isinstance(size, float)))
    for pool in dict.fromkeys(source[name] for name in reversed(SPLITS)):
        groups = _groups([example for example in pools[pool] if _group(example) not in used], seed)
        groups = _in_proportion(groups, seed) if labels else groups
        takers = {name: sizes[name] for name in SPLITS if source[name] == pool}
        parts |= _deal(groups, takers, share, where, pool)
        used |= {_group(example) for example in pools[pool]}
    _warn_of_missing(labels, parts, where)
    return {name: parts[name] for name in SPLITS}


def _labels(examples: Sequence[Example]) -> set[str]:
    """The answers, if many questions share a few of them; else none. Texts (perplexity) have no answers."""
    if not any(example.prompt for example in examples):
        return set()
    answers = Counter(_label(example) for example in examples)
    if any(example.choices for example in examples):
        fixed = len({frozenset(text.strip() for text in example.choices) for example in examples}) == 1
    else:
        fixed = len(answers) <= MOST_LABELS and len(examples) >= 5 * len(answers)
    return set(answers) if fixed and len(answers) > 1 else set()


def _label(example: Example) -> str:
    return example.target.strip() if example.choices else " ".join(example.references[0].casefold().split())


def _warn_of_missing(labels: Collection[str], parts: Mapping[str, Sequence[Example]], where: str) -> None:
    missing = {name: sorted(labels - {_label(example) for example in parts[name]}) for name in SPLITS}
    lacking = [f"the {name} split {listed(map(shorten, answers))}" for name, answers in missing.items() if answers]
    if lacking:
        progress.warn(
            f"{where}: some answers are missing from a split, which cannot measure them: {'; '.join(lacking)}; add "
            "examples with these answers, or change splits"
        )


def _in_proportion(groups: Sequence[list[Example]], seed: int) -> list[list[Example]]:
    """Order groups so that every stretch has each kind of group in proportion.

    The groups of one kind (those with the same answers) lie at equal distances, counted in examples, from a beginning
    that the seed draws; within a kind they keep their order.
    """
    kinds: dict[tuple[str, ...], list[list[Example]]] = defaultdict(list)
    for group in groups:
        kinds[tuple(sorted({_label(example) for example in group}))].append(group)
    placed = []
    for kind, members in kinds.items():
        digest = hashlib.sha256(f"{seed}\0{kind}".encode()).digest()
        offset, before, total = int.from_bytes(digest[:6], "big") / 2**48, 0, sum(map(len, members))
        for group in members:
            placed.append(((before + offset * len(group)) / total, digest, len(placed), group))
            before += len(group)
    return [group for *_, group in sorted(placed, key=lambda item: item[:3])]


def _source(name: str, pools: Mapping[str, Sequence[Example]], where: str) -> str:
    if list(pools) == [""]:
        return ""
    for candidate in _SOURCES[name]:
        if candidate in pools:
            return candidate
    known = ", ".join((*_TRAIN[:1], *_DEV[:1], *_TEST[:1]))
    raise InputError(f"{where}: no split file for {name!r} among {listed(pools)}: name them {known}")


def _group(example: Example) -> str:
    return example.group or example.question


def _groups(examples: Sequence[Example], seed: int) -> list[list[Example]]:
    """Examples of one group each, in an order drawn from the seed and the groups' names alone."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(_group(example), []).append(example)

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{name}".encode()).digest()

    def within(example: Example) -> tuple:
        return example.prompt, example.choices, example.answer, example.references

    return [sorted(groups[name], key=within) for name in sorted(groups, key=key)]


def _deal(
    groups: Sequence[list[Example]], takers: Mapping[str, float | int], share: float, where: str, pool: str
) -> dict[str, list[Example]]:
    """Each split in turn takes whole groups until it has its size; surplus examples of its last group are not used.

    A split leaves one group for each later split. If large groups have cost examples, fractions are of what is
    left.
    """
    total = left = sum(map(len, groups))
    parts: dict[str, list[Example]] = {}
    dealt = lost = 0
    for later, (name, size) in zip(reversed(range(len(takers))), takers.items(), strict=True):
        wanted = size if isinstance(size, int) else int(total * share * size / _fractions(takers) + 1e-9)
        if lost and not isinstance(size, int):
            open_takers = {taker: takers[taker] for taker in takers if taker not in parts}
            wanted = min(wanted, int(left * size / _fractions(open_takers) + 1e-9))
        part: list[Example] = []
        while len(part) < wanted and len(groups) - dealt > (later if part else 0):
            part += groups[dealt]
            left -= len(groups[dealt])
            dealt += 1
        lost += max(len(part) - wanted, 0)
        parts[name] = part[:wanted]
        if not part or (isinstance(size, int) and len(part) < wanted):
            raise InputError(f"{where}: {_shortage(name, size, len(part), groups, pool)}")
    return parts


def _fractions(sizes: Mapping[str, float | int]) -> float:
    return sum(size for size in sizes.values() if isinstance(size, float))


def _shortage(name: str, size: float | int, found: int, groups: Sequence[list[Example]], pool: str) -> str:
    sizes = list(map(len, groups))
    data = f"{pool!r} has" if pool else "the data has"
    together = ""
    if max(sizes, default=1) > 1:
        together = (
            f", in {len(groups):,} groups (rows of one question, or with equal fields of `group`), the largest of "
            f"{max(sizes):,}, and a group is in one split"
        )
    if not found:
        return f"the {name} split is empty: {data} {sum(sizes)} examples{together}; add data or change splits"
    asked = f"splits asks for {shorten(size)} {name} examples, {found} are left"
    return f"{asked}: {data} {sum(sizes)} in all{together}"
