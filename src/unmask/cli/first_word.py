"""What is said before torch is imported, which takes seconds, by whichever module asks for it first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType


class _BeforeTorch(MetaPathFinder):
    """Finds nothing: it is asked before those that do."""

    def __init__(self, say: Callable[[], object]) -> None:
        self._say = say

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torch":
            self._say()


@contextmanager
def before_torch(say: Callable[[], object]) -> Iterator[None]:
    """Call `say` before torch is imported within; not where nothing imports it, or it is there already."""
    finder = _BeforeTorch(say)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
