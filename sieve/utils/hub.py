"""Whether the hub of models and data sets can be reached; its own clients would need half a minute to find out."""

import threading

SECONDS = 3.0
"""How long to wait for an answer."""


def hub_answers() -> bool:
    """Whether the hub answers at all: one short try, limited in time whatever the network does."""
    answered: list[bool] = []
    # Looking up the host's name obeys no time limit, so it runs in a daemon thread that can be left behind.
    thread = threading.Thread(target=lambda: answered.append(_answers()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answered == [True]


def _answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:
        # The client's versions use different HTTP libraries, which raise different errors.
        return False
    return True
