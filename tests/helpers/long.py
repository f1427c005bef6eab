"""What of a parametrized test the default suite leaves to `make long`, which CI runs too."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def long_unless(kept: Container[Any], values: Iterable[Any]) -> list[Any]:
    """The values as parameters, those that are not among the `kept` marked long."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.long) for value in values]
