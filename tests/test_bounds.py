"""Values of parameters: out of bounds they are refused with a sentence before anything runs, for every notebook."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import places
from lib.artifact.bounds import Bounds, bounds_of, like, read_value
from lib.artifact.notebooks import choose_notebooks
from lib.errors import UserError
from lib.run import choose_parameters

NOTEBOOKS = choose_notebooks([], places.NOTEBOOKS)
PARAMETERS = [
    (notebook, name, default)
    for notebook in NOTEBOOKS
    for name, default in notebook.parameters.items()
    if name != "model"
]
COUNTS = [(notebook, name) for notebook, name, default in PARAMETERS if type(default) is int]
LISTS = [(notebook, name) for notebook, name, default in PARAMETERS if isinstance(default, list)]
names = lambda value: getattr(value, "name", None) or str(value)  # noqa: E731


def given_as(notebook, name, text):
    return choose_parameters([f"{name}={text}"], [notebook])[notebook.name][name]


@pytest.mark.parametrize("notebook, name, default", PARAMETERS, ids=names)
def test_every_default_is_within_its_own_bounds(notebook, name, default):
    assert bounds_of(name, default, notebook.comments[name]).why_not(default) == ""
    assert like(default, default) == default
    assert type(given_as(notebook, name, repr(default))) is type(default)


@pytest.mark.parametrize("notebook, name", COUNTS, ids=names)
@given(value=st.integers(max_value=-1))
def test_no_count_and_no_seed_is_negative(notebook, name, value):
    with pytest.raises(UserError, match=rf"^-p {name}=.* does not fit .*: it must be at least"):
        given_as(notebook, name, value)


@pytest.mark.parametrize("notebook, name", COUNTS, ids=names)
@pytest.mark.parametrize("text", ["1.5", "nan", "inf", "1e3", "'3'", "three", "", "[3]", "True", "None", "9" * 5000])
def test_a_count_is_a_whole_number(notebook, name, text):
    with pytest.raises(UserError, match="does not fit"):
        given_as(notebook, name, text)


@pytest.mark.parametrize("notebook, name", COUNTS, ids=names)
def test_only_a_seed_may_be_zero(notebook, name):
    if name == "seed":
        assert given_as(notebook, name, "0") == 0
    else:
        with pytest.raises(UserError, match=r"at least [1-9]"):
            given_as(notebook, name, "0")


@pytest.mark.parametrize("notebook, name", LISTS, ids=names)
@pytest.mark.parametrize("text", ["4", "[]", "['a']", "[nan]", "[1e999]", "[1, None]", "[2, 2]", "[True]", "[[1]]"])
def test_lists_of_numbers_hold_numbers(notebook, name, text):
    with pytest.raises(UserError, match="does not fit"):
        given_as(notebook, name, text)


@pytest.mark.parametrize("notebook, name", LISTS, ids=names)
@given(values=st.lists(st.integers(1, 1000) | st.floats(0.1, 1e6), min_size=1, max_size=5, unique=True))
def test_whole_and_decimal_numbers_may_stand_in_a_list(notebook, name, values):
    assert given_as(notebook, name, values) == values
    assert given_as(notebook, name, tuple(values)) == values  # and stay a list


@given(text=st.text(max_size=50))
def test_whatever_is_typed_is_a_value_or_a_sentence(text):
    for default in (1, 0.5, "word", [1, 2.5], True):
        try:
            value = read_value(text, default, bounds_of("n", default, ""))
        except UserError as error:
            assert len(str(error)) < 300
        else:
            assert type(value) is type(default)
            assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    "comment, good, bad",
    [
        ("draws [at least 20]", 20, 19),
        ("step [1 to 15]", 15, 16),
        ("how it is asked [one of is_the, reference_point]", "is_the", "other"),
    ],
)
def test_a_comment_may_state_other_bounds(comment, good, bad):
    bounds = bounds_of("n", good, comment)
    assert bounds.why_not(good) == "" and bounds.why_not(bad)
    assert Bounds(words=("a",)).why_not("") == ""  # an empty word leaves the choice to the notebook
