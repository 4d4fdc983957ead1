"""Whether the hub of models and data sets can be reached; what its clients would spend half a minute to find out."""

import threading

SECONDS = 3.0
"""How long an answer is waited for."""


def hub_answers() -> bool:
    """Whether the hub answers at all. One short try, bounded in time whatever the network does with it."""
    answered: list[bool] = []
    # A look-up of the host's name keeps no time limit: it is left behind in a thread that ends no process.
    thread = threading.Thread(target=lambda: answered.append(_answers()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answered == [True]


def _answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # which HTTP library raises what differs between versions of the client
        return False
    return True
