"""Questions about places: fair, and the same on every machine."""

from collections import Counter

import pytest

from sieve.tasks import geography

pytestmark = pytest.mark.model  # needs the data package


@pytest.fixture(scope="module")
def cities():
    return geography.geography()


@pytest.fixture(scope="module")
def capitals():
    return geography.capitals()


def test_enough_cities(cities):
    assert len(cities) == geography.CITIES


def test_a_name_belongs_to_one_country(cities):
    names = [city["city"] for city in cities]
    assert len(names) == len(set(names))
    assert not {"Birmingham", "Santiago", "Valencia"} & set(names)


def test_the_name_does_not_tell(cities):
    assert not [city for city in cities if city["country"] in city["city"]]


def test_four_different_choices_with_the_right_one_anywhere(cities, capitals):
    for row in (*cities, *capitals):
        assert len(set(row["choices"])) == geography.CHOICES
    for rows in (cities, capitals):
        places_of_right = Counter(row["answer"] for row in rows)
        assert all(0.18 < count / len(rows) < 0.32 for count in places_of_right.values())
    assert all(city["choices"][city["answer"]] == city["country"] for city in cities)


def test_what_naming_the_frequent_countries_gives(cities):
    frequency = Counter(city["country"] for city in cities)
    guesses = [max(city["choices"], key=lambda choice: frequency[choice]) == city["country"] for city in cities]
    assert sum(guesses) / len(guesses) == pytest.approx(0.62, abs=0.01)  # as the docstring says


@pytest.fixture(scope="module", params=["geography_2", "us_cities", "countries"])
def drawn_in_proportion(request):
    return getattr(geography, request.param)()


def test_in_proportion_naming_what_is_frequent_gives_chance(drawn_in_proportion):
    """Judged as in the evaluation, among the row's choices, by how often each is right in all rows."""
    rows = drawn_in_proportion
    frequency = Counter(row["choices"][row["answer"]] for row in rows)
    guesses = [
        max(range(geography.CHOICES), key=lambda index: frequency[row["choices"][index]]) == row["answer"]
        for row in rows
    ]
    assert sum(guesses) / len(guesses) == pytest.approx(0.25, abs=0.08)
    for row in rows:
        assert len(set(row["choices"])) == geography.CHOICES


def test_the_new_draw_asks_about_the_same_cities(cities):
    new = geography.geography_2()
    assert [(row["city"], row["country"]) for row in new] == [(row["city"], row["country"]) for row in cities]
    assert [row["choices"] for row in new] != [row["choices"] for row in cities]


def test_us_cities():
    rows = geography.us_cities()
    assert len(rows) > 1700
    assert len({row["city"] for row in rows}) == len(rows)
    assert max(Counter(row["state"] for row in rows).values()) <= geography.CITIES_PER_STATE
    assert not [row for row in rows if row["state"] in row["city"]]
    assert {row["city"]: row["state"] for row in rows}["Seattle"] == "Washington"
    assert not {"Springfield", "Portland"} & {row["city"] for row in rows}


def test_countries():
    rows = geography.countries()
    assert len(rows) > 1400
    right = {(row["question"], row["choices"][row["answer"]]) for row in rows}
    assert ("The capital of France is", "Paris") in right
    assert ("Paris is the capital of", "France") in right
    assert ("The country of Kenya is on the continent of", "Africa") in right
    assert ("The currency of Japan is the", "Yen") in right
    assert {("Portugal shares a border with", "Spain")} == {
        one for one in right if one[0].startswith("Portugal shares")
    }
    of_france = [row for row in rows if row["question"] == "France shares a border with"]
    near = {row["choices"][row["answer"]] for row in of_france}
    assert all(len(near & set(row["choices"])) == 1 for row in of_france)  # no wrong choice is right


def test_deterministic(cities):
    assert cities == geography.geography()


def test_capitals_both_ways(capitals):
    right = {row["question"]: row["choices"][row["answer"]] for row in capitals}
    assert right["What is the capital of France?"] == "Paris"
    assert right["Of which country is Paris the capital?"] == "France"
    assert "What is the capital of Singapore?" not in right  # the name tells
