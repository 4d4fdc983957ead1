"""The docs' table of options: `python -m sieve.commands.table > docs/options.md` rewrites it."""

from collections.abc import Mapping

from sieve.commands.prune import PruneConfig
from sieve.run.presets import PRESETS
from sieve.run.recipe import recipe_options
from sieve.utils.options import GROUPS, Option, options_of

HEAD = """# Options of `sieve prune`

What decides the result can also stand in a recipe (`--config recipe.yaml`), by its name without the leading hyphens
and with `_` for `-`: `calibration_tokens: 16000`. In Python it is `sieve.Recipe("smollm2", "geography",
calibration_tokens=16_000)`. A recipe may also group options by component, as `sieve.Recipe` does:
`goal: {tolerance: 0.1, search: ga}`. Every output folder holds the recipe that made it. A switch is off unless its
default says on.

## Presets

Where neither `--method` nor `--config` is given, `sieve prune` starts from the options of `default`; `--fast` and
`--best` start from theirs. What is given wins, and with `--kept` or `--heal none` there are no rounds. In Python it is
`sieve.Recipe("smollm2", "geography", **sieve.PRESETS["best"])`. An empty cell, and every option that is not listed
here, has the default that the tables below name: those of a recipe.
"""


def options_table() -> str:
    """Markdown: a table for each group of options."""
    parts = [HEAD, _presets(), *_tables(recipe_options())]
    parts += ["## On the command line only\n\nThese do not decide the result, so no recipe has them.\n"]
    parts += [_table(options_of(PruneConfig).values())]
    return "\n".join(parts)


def _presets() -> str:
    names = [name for name in recipe_options() if any(name in preset for preset in PRESETS.values())]
    rows = [
        [f"`{recipe_options()[name].flag}`", *(str(preset.get(name, "")) for preset in PRESETS.values())]
        for name in names
    ]
    lines = [["option", *(f"`{name}`" for name in PRESETS)], ["---"] * (len(PRESETS) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("True", "on") + "\n"


def _tables(options: Mapping[str, Option]) -> list[str]:
    groups = {group: [one for one in options.values() if one.group == group] for group in GROUPS}
    return [f"## {group}\n\n{_table(found)}" for group, found in groups.items() if found]


def _table(options) -> str:
    lines = ["| option | default | values | what it does |", "|---|---|---|---|"]
    lines += [f"| `{_shown(one)}` | {one.default_text} | {one.range_text} | {one.help} |" for one in options]
    return "\n".join(lines) + "\n"


def _shown(option: Option) -> str:
    return option.name.upper() if option.argument else option.flag


if __name__ == "__main__":
    print(options_table(), end="")
