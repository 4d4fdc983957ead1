"""What a user can choose about the model that is read."""

from sieve.errors import InputError
from sieve.utils.messages import shorten

EMBEDDED_MODEL = "smollm2"
DTYPES = ("auto", "bfloat16", "float16", "float32")


def check_dtype(dtype: str) -> None:
    """InputError unless it is the name of a dtype that models can be read in."""
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {shorten(dtype)}: choose one of {', '.join(DTYPES)}")
