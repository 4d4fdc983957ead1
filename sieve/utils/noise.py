"""Dropping messages that other libraries print at import, which mean nothing to users of Sieve."""

import logging
import re

_USELESS = {
    # torchao works without its compiled parts for other Pythons and GPUs.
    "torchao": re.compile(r"Failed to load .*_C|Skipping import of cpp extensions", re.DOTALL),
    # torchao registers enums, which torch now does by itself.
    "torch.utils._pytree": re.compile(r".*is an Enum subclass and is now natively supported", re.DOTALL),
}
"""Logger → messages that are dropped; all others pass."""


def quiet_imports() -> None:
    """Drop those messages from now on; calling it again changes nothing."""
    for name, useless in _USELESS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Drop) for one in logger.filters):
            logger.addFilter(_Drop(useless))


class _Drop(logging.Filter):
    def __init__(self, useless: re.Pattern[str]):
        super().__init__()
        self._useless = useless

    def filter(self, record: logging.LogRecord) -> bool:
        return self._useless.match(record.getMessage()) is None
