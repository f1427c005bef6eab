"""What a benchmark is made of: calls to be timed, and what their comparison must show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from timing import Calls


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether two results are equal, in words and in truth."""

    text: str
    holds: bool = True


# what the warm-up calls of all variants returned -> verdict
Check = Callable[[Mapping[str, Any]], Verdict]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of the table: how many times faster than the baseline, equal or not, with how much memory.

    Bars and equality of rows that do not count are shown, and fail nothing.
    """

    variant: str
    baseline: str
    at_least: float | None = None  # ratio of times, baseline to variant
    equal: Check | None = None
    memory_share: float | None = None  # of the baseline's extra memory, at most
    memory_limit: float | None = None  # MB at most
    counts: bool = True

    @property
    def reads_memory(self) -> bool:
        """Whether memory is measured."""
        return self.memory_share is not None or self.memory_limit is not None


@dataclass(frozen=True, kw_only=True)
class Case:
    """Variants that do the same work, and how they compare."""

    calls: Calls
    comparisons: tuple[Comparison, ...]
    checked: Calls = field(default_factory=dict)  # warm-up calls in place of the timed ones: noise replaced
    megabytes: Callable[[Callable[[], Any]], float] | None = None  # of a call; None: of a fresh process


# brief: as few steps as show the peak of memory
Build = Callable[[bool], Case]
