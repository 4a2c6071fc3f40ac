"""What a term matches, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.catalog import Catalog, Matches
from node.records import DESCRIPTION_CHARS, TITLE_CHARS, RepositoryRecord
from node.reference import Repository

SAID = {
    "app": RepositoryRecord(),
    "team/app": RepositoryRecord("Shop", "Sells apples"),
    "team/application": RepositoryRecord("Bank"),
    "my-app": RepositoryRecord("", "The SHOP window"),
    "app/base": RepositoryRecord(),
    "zoo": RepositoryRecord("Zoo", "An APP for animals in Grünwald"),
}


def catalog(names: dict[str, RepositoryRecord]) -> Catalog:
    """A catalog that lists these, put in the order of the dictionary."""
    listed = Catalog()
    for name, record in names.items():
        listed.put(Repository(name), record)
    return listed


def found(term: str, first: int = 0, count: int = 100) -> list[str]:
    """The names that a term finds in what is SAID."""
    matches = Matches(term)
    rows = catalog(SAID).rows()
    matches.look(rows[:2])
    matches.look(rows[2:])
    page = matches.page(first, count)
    assert len(page) <= min(count, len(matches))
    return [row.name for row in page]


@pytest.mark.parametrize(
    ("term", "names"),
    [
        pytest.param(
            "app",
            ["app", "team/app", "team/application", "app/base", "my-app", "zoo"],
            id="the name, beginnings, within the name, the text; each in byte order",
        ),
        pytest.param("team/app", ["team/app", "team/application"], id="a term with a slash"),
        pytest.param("APP/Base ", ["app/base"], id="case and blanks around do not count"),
        pytest.param("shop", ["my-app", "team/app"], id="title and description"),
        pytest.param("GRÜN", ["zoo"], id="other letters than ASCII's"),
        pytest.param("shop sells", [], id="a title does not run on into its description"),
        pytest.param("", sorted(SAID), id="nothing finds all"),
        pytest.param("nowhere", [], id="no match"),
    ],
)
def test_a_term_finds(term: str, names: list[str]) -> None:
    """Better matches come first."""
    assert found(term) == names


@given(first=st.integers(0, 8), count=st.integers(0, 8), term=st.sampled_from(["app", "", "x"]))
def test_a_page_is_a_part_of_all(first: int, count: int, term: str) -> None:
    """Pages cut the one list, wherever its ranks change."""
    assert found(term, first, count) == found(term)[first : first + count]


@given(
    st.lists(st.tuples(st.sampled_from(sorted(SAID)), st.booleans())),
)
def test_the_catalog_is_what_was_put_last(changes: list[tuple[str, bool]]) -> None:
    """Whatever is put and dropped, it lists what is there, once, in byte order."""
    listed, model = Catalog(), set[str]()
    for name, wanted in changes:
        if wanted:
            listed.put(Repository(name), SAID[name])
            model.add(name)
        else:
            listed.drop(Repository(name))
            model.discard(name)
    assert [row.name for row in listed.rows()] == sorted(model)
    assert len(listed) == len(model)


def test_a_description_stands_for_itself_or_the_title_for_it() -> None:
    """What is shown is the description; the title where there is none."""
    shown = {str(row.name): row.description for row in catalog(SAID).rows()}
    assert shown["team/app"] == "Sells apples"
    assert shown["team/application"] == "Bank"
    assert shown["app"] == ""


def test_long_words_are_cut() -> None:
    """A megabyte of description is no megabyte of the catalog."""
    record = RepositoryRecord.of("t" * 1_000_000, "d" * 1_000_000)
    assert (len(record.title), len(record.description)) == (TITLE_CHARS, DESCRIPTION_CHARS)
