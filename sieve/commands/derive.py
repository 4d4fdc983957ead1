"""A command's parameters, derived from the options of configs: names, help, defaults and groups."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from sieve.run.recipe import recipe_options
from sieve.utils.options import GROUPS, Option, options_of

_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


def command(config: type, *names: str) -> Callable[[Callable], Callable]:
    """A decorator that turns a function of (own options, given options of the recipe) into a command.

    Args:
        config: a dataclass of the options that only this command has.
        names: options of a recipe that it also takes.

    Example:
        >>> @command(CalibrateConfig, "model", "task", "seed")
        ... def calibrate(own: CalibrateConfig, given: dict[str, Any]) -> None: ...
    """
    known = recipe_options()
    mine, recipes = options_of(config), {name: known[name] for name in names}

    def derive(function: Callable[[Any, dict[str, Any]], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            given = {name: value for name, value in values.items() if value is not None}
            own = {name: given.pop(name) for name in mine if name in given}
            function(config(**own), {name: recipes[name].read(value) for name, value in given.items()})

        run.__doc__, run.__name__ = function.__doc__, function.__name__
        run.__signature__ = inspect.Signature([*_parameters(mine.values(), recipes.values())])
        return run

    return derive


def help_text(option: Option) -> str:
    """The help of an option with its choices and its default."""
    text = option.help
    if option.known and option.listed:
        text += f": {option.range_text}"
    return f"{text}." + (f" [default: {option.default_text}]" if option.default_text else "")


def _parameters(own: Iterable[Option], recipes: Iterable[Option]) -> list[inspect.Parameter]:
    """Arguments first; options in the order of their groups."""
    # Options that a recipe needs may come from its file, so none is required here.
    options = [(one, False) for one in recipes] + [(one, one.default is dataclasses.MISSING) for one in own]
    options.sort(key=lambda pair: (not pair[0].argument, GROUPS.index(pair[0].group)))
    return [_parameter(option, required) for option, required in options]


def _parameter(option: Option, required: bool) -> inspect.Parameter:
    kind = str if str in option.types else option.types[0]
    about = {"help": help_text(option), "rich_help_panel": option.group}
    if option.argument:
        how = typer.Argument(metavar=option.name.upper(), **about)
    else:
        metavar = {} if kind is bool else {"metavar": _METAVARS[kind]}
        how = typer.Option(*_flags(option), **about, **metavar)
    default = {} if required else {"default": None}
    annotation = Annotated[kind if required else kind | None, how]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, **default)


def _flags(option: Option) -> tuple[str, ...]:
    if option.flags or option.default is not True:
        return option.flags or (option.flag,)
    return (f"{option.flag}/--no-{option.flag.removeprefix('--')}",)
