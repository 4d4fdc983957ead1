"""Hidden states that outlive one call of the engine: what the next generation's candidates share with their parents."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from sieve.models.blockwise import States

Prefix = tuple[Hashable, ...]


class StateStore:
    """Rung and prefix of blocks → states entering the next block, the least recently used leaving first.

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

    def __contains__(self, key: tuple[int, Prefix]) -> bool:
        return key in self._states

    def deepest(self, rung: int, *keys: Prefix) -> int:
        """The last block that these candidates can all start from; 0 if none."""
        known = (block for block in reversed(self.anchors) if all((rung, key[:block]) in self for key in keys))
        return next(known, 0)

    def get(self, rung: int, prefix: Prefix) -> States:
        """States that are stored; none before the first block."""
        if not prefix:
            return []
        self._states.move_to_end((rung, prefix))
        return self._states[rung, prefix]

    def put(self, rung: int, prefix: Prefix, states: States) -> None:
        size = bytes_of(states)
        if (rung, prefix) in self._states or size > self._memory:
            return
        self._states[rung, prefix] = states
        self.bytes += size
        while self.bytes > self._memory:
            _, oldest = self._states.popitem(last=False)
            self.bytes -= bytes_of(oldest)

    def retain(self, keys: Iterable[Prefix]) -> None:
        """Forget the states that none of these candidates has."""
        prefixes = {key[:block] for key in keys for block in self.anchors}
        for rung, prefix in list(self._states):
            if prefix not in prefixes:
                self.bytes -= bytes_of(self._states.pop((rung, prefix)))


def bytes_of(states: Sequence) -> int:
    """Bytes."""
    return sum(state.numel() * state.element_size() for state in states)
