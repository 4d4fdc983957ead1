"""States of blocks that outlive one walk: what the next generation's candidates share with their parents."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from sieve.models.blockwise import States

Prefix = tuple[Hashable, ...]


class StateStore:
    """Slice of the data and prefix of blocks → states entering the next block, the least recently used leaving first.

    States are kept at every `every`-th block only: deep candidates differ late, and a block more or less is cheap.

    Args:
        memory: bytes that all states together may take.
    """

    def __init__(self, blocks: int, memory: int):
        every = max(blocks // 15, 1)
        self.anchors = tuple(range(every, blocks, every))
        self.bytes = 0
        self._memory = memory
        self._states: OrderedDict[tuple[int, Prefix], States] = OrderedDict()

    def __contains__(self, place: tuple[int, Prefix]) -> bool:
        return place in self._states

    def deepest(self, part: int, *keys: Prefix) -> int:
        """The last block that these candidates can all start from; 0 if none."""
        known = (block for block in reversed(self.anchors) if all((part, key[:block]) in self for key in keys))
        return next(known, 0)

    def get(self, part: int, prefix: Prefix) -> States:
        """States that are here; none before the first block."""
        if not prefix:
            return []
        self._states.move_to_end((part, prefix))
        return self._states[part, prefix]

    def put(self, part: int, prefix: Prefix, states: States) -> None:
        size = size_of(states)
        if (part, prefix) in self._states or size > self._memory:
            return
        self._states[part, prefix] = states
        self.bytes += size
        while self.bytes > self._memory:
            _, oldest = self._states.popitem(last=False)
            self.bytes -= size_of(oldest)

    def retain(self, keys: Iterable[Prefix]) -> None:
        """Forget the states that none of these candidates has."""
        prefixes = {key[:block] for key in keys for block in self.anchors}
        for part, prefix in list(self._states):
            if prefix not in prefixes:
                self.bytes -= size_of(self._states.pop((part, prefix)))


def size_of(states: Sequence) -> int:
    """Bytes."""
    return sum(state.numel() * state.element_size() for state in states)
