"""Checks shapes at run time: the tests import lib/ with this as jaxtyping's type checker (see pyproject.toml).

Only array annotations are checked (`Float[Tensor, "pair hidden"]` and the like): a dimension name must mean one size
within a call. Other annotations are for readers.
"""

import functools
import inspect
import typing

from jaxtyping import AbstractArray


def arrays(hint) -> tuple:
    """The array types of an annotation such as `ImageTokens | None`; () where anything else is allowed, too."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | str)) else (hint,)
    found = tuple(each for each in options if isinstance(each, type) and issubclass(each, AbstractArray))
    return found if all(each in found or each is type(None) for each in options) else ()


def checked(function):
    """The function, refusing arguments and results whose shapes contradict their annotations."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        hints = resolved(function)
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            check(name, value, arrays(hints.get(name)))
        result = function(*args, **kwargs)
        check("the result", result, arrays(hints.get("return")))
        return result

    return wrapper


@functools.cache
def resolved(function) -> dict:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a name that is imported for type checkers only
        return {}


def check(name: str, value, kinds: tuple) -> None:
    if kinds and value is not None and not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} has shape {tuple(getattr(value, 'shape', ()))} and should be {wanted}")
