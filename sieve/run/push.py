"""`sieve push`: upload a pruned model's folder to a hub, without paths of the owner's machine."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sieve.errors import InputError, StorageError
from sieve.run.report.html.run_page import run_pages
from sieve.run.report.read import read_report
from sieve.tasks.stored import TASK_FILE
from sieve.utils import progress
from sieve.utils.checksums import CHECKSUMS, identity_in, write_checksums
from sieve.utils.files import write_json, write_text, write_yaml
from sieve.utils.hub import hub_answers
from sieve.utils.messages import one_line, shorten
from sieve.utils.safe_yaml import read_yaml

_PLACES = ("model", "task", "data", "dataset", "lm_eval", "general", "teacher")
"""Keys of recipes, tasks and reports whose values may be paths on this machine."""


def check_push(repository: str) -> None:
    """InputError if a push would fail; called before long work. The hub is only asked whether it can be reached."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"{shorten(repository)} is no name of a repository: {one_line(error)}") from None
    if get_token() is None:
        raise InputError("no token for the hub is stored here: run `hf auth login`, or set HF_TOKEN")
    if not hub_answers():
        raise InputError("the hub cannot be reached: check the connection, and push the folder later by `sieve push`")


def push(folder: str | Path, repository: str) -> str:
    """Upload the folder to a repository of the hub, made private where it does not exist; returns its address.

    Paths of this machine (of the model, the task's data) are cut to their last name, and rows in the task file are not
    uploaded.

    Raises: InputError for a folder without a pruned model, an invalid repository name, or a missing token;
        StorageError where the hub refuses.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a pruned model's folder: name one that `sieve prune` or `sieve.save` made")
    check_push(repository)
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        _stage(folder, Path(place))
        progress.say(f"pushing {folder} to {repository}")
        try:
            made = HfApi().create_repo(repository, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=made.repo_id, folder_path=place, commit_message="Pruned by Sieve")
        except Exception as error:
            # The client, HTTP and the hub raise errors of many kinds.
            raise StorageError(f"the hub did not take {repository}: {one_line(error)}") from error
    return str(made)


def _stage(folder: Path, place: Path) -> None:
    """The folder's files for the upload: links to them, and edited copies of those that contain paths."""
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("."):
            (place / file.name).symlink_to(file.resolve())
    recipe = _rewritten(folder, place, "recipe.yaml")
    _rewritten(folder, place, TASK_FILE)
    if (folder / "report.json").is_file():
        report = _without_places(read_report(folder))
        _replace(place / "report.json", lambda path: write_json(path, report))
        for name, text in run_pages(report, recipe).items():
            _replace(place / name, lambda path, text=text: write_text(path, text))
    if (folder / CHECKSUMS).is_file():
        (place / CHECKSUMS).unlink()
        write_checksums(place, identity_in(folder))


def _rewritten(folder: Path, place: Path, name: str) -> dict[str, Any]:
    """The values of a YAML file in the folder, without paths; empty if there is no such file."""
    if not (folder / name).is_file():
        return {}
    values = _without_places(read_yaml(folder / name, f"the {name.removesuffix('.yaml')}"))
    _replace(place / name, lambda path: write_yaml(path, values))
    return values


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    path.unlink(missing_ok=True)
    write(path)


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_place(value) if key in _PLACES else value for key, value in values.items()}


def _without_place(value: Any) -> Any:
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    if isinstance(value, Mapping):
        return _without_places(value)
    return "rows.jsonl" if isinstance(value, list) else value
