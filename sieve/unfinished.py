"""What an interrupted search leaves behind, so that it can be resumed: its recipe and its journal.

Both lie in `DIR.unfinished` beside the folder DIR that is being made. Nothing else need be kept: all choices follow
from the recipe's seed and the scores, so that a search begun again with the journal comes to where it was without
running the model, and on to the same result.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sieve import progress
from sieve.errors import InputError, SieveError, StorageError, WorkerError
from sieve.files import write_json
from sieve.recipe import Recipe

_RECIPE, _JOURNAL = "recipe.yaml", "journal.txt"


class Unfinished:
    """The folder of one search that is under way; searches of a few candidates have none.

    Raises: InputError where there is nothing to resume, or something that would be overwritten.
    """

    def __init__(self, output: Path, recipe: Recipe, resume: bool):
        self._folder, self._recipe, self._resume = _folder(output), recipe, resume
        self._output = output
        if resume:
            unfinished_recipe(output)
        elif self._folder.exists():
            raise InputError(
                f"{self._folder} holds an interrupted search: go on with --resume {output}, or remove it first"
            )

    @contextmanager
    def search(self) -> Iterator[Path | None]:
        """The journal to search with, or None. An error that resuming would not mend takes the folder with it."""
        if self._recipe.searcher == "uniform":
            yield None
            return
        if not self._resume:
            write_json(self._folder / _RECIPE, self._recipe.to_dict())
        try:
            yield self._folder / _JOURNAL
        except SieveError as error:
            if not self._resume and not isinstance(error, StorageError | WorkerError):
                self.remove()
            raise
        except KeyboardInterrupt:
            progress.say(f"  interrupted: go on with --resume {self._output}")
            raise

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def unfinished_recipe(output: str | Path) -> Path:
    """The recipe of the search that was interrupted on its way to `output`; InputError if there is none."""
    recipe = _folder(Path(output)) / _RECIPE
    if not recipe.is_file():
        raise InputError(f"there is no interrupted search on its way to {output}: start one with --output {output}")
    return recipe


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.unfinished")
