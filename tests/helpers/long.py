"""What of a parametrized test the default suite leaves to `make long`, which CI runs too."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def long_unless(kept: Callable[..., bool], values: Iterable[Any]) -> list[Any]:
    """The values as parameters, those that are not `kept` marked long."""
    return [value if kept(value) else pytest.param(value, marks=pytest.mark.long) for value in values]
