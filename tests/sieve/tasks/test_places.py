"""Questions about places: fair, and the same on every machine."""

from collections import Counter

import pytest

from sieve.tasks import places

pytestmark = pytest.mark.model  # needs the data package


@pytest.fixture(scope="module")
def cities():
    return places.geography()


@pytest.fixture(scope="module")
def capitals():
    return places.capitals()


def test_enough_cities(cities):
    assert len(cities) == places.CITIES


def test_a_name_belongs_to_one_country(cities):
    names = [city["city"] for city in cities]
    assert len(names) == len(set(names))
    assert not {"Birmingham", "Santiago", "Valencia"} & set(names)


def test_the_name_does_not_tell(cities):
    assert not [city for city in cities if city["country"] in city["city"]]


def test_four_different_choices_with_the_right_one_anywhere(cities, capitals):
    for row in (*cities, *capitals):
        assert len(set(row["choices"])) == places.CHOICES
    for rows in (cities, capitals):
        places_of_right = Counter(row["answer"] for row in rows)
        assert all(0.18 < count / len(rows) < 0.32 for count in places_of_right.values())
    assert all(city["choices"][city["answer"]] == city["country"] for city in cities)


def test_what_naming_the_frequent_countries_gives(cities):
    frequency = Counter(city["country"] for city in cities)
    guesses = [max(city["choices"], key=lambda choice: frequency[choice]) == city["country"] for city in cities]
    assert sum(guesses) / len(guesses) == pytest.approx(0.62, abs=0.01)  # as the docstring says


def test_deterministic(cities):
    assert cities == places.geography()


def test_capitals_both_ways(capitals):
    right = {row["question"]: row["choices"][row["answer"]] for row in capitals}
    assert right["What is the capital of France?"] == "Paris"
    assert right["Of which country is Paris the capital?"] == "France"
    assert "What is the capital of Singapore?" not in right  # the name tells
