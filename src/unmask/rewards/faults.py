"""What becomes of a call of a reward function that fails: tried again, scored None, or the end of the run."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from unmask.errors import UserError

Score = float | None  # None: the function does not apply

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 1.0  # before a call is made again, twice as long each next time
_LONGEST = 300  # characters that are told of an exception


@dataclass(frozen=True, kw_only=True)
class FaultRule:
    """How long a call may take, how often it is made again, and whether its scores are then None or the run ends."""

    timeout_seconds: float = 0.0  # of one try; 0: no limit
    retries: int = 0  # further tries of a call that failed
    gives_none: bool = False  # after the last of them
    ends_process: bool = True  # where a call that has reached its limit cannot be interrupted

    @property
    def longest_seconds(self) -> float:
        """All tries of a call with the pauses between them; 0: no limit."""
        pauses = _FIRST_PAUSE_SECONDS * (2**self.retries - 1)
        return self.timeout_seconds and self.timeout_seconds * (1 + self.retries) + pauses


@dataclass(kw_only=True)
class Tries:
    """Tries of one call, until it has scores.

    tries = Tries(rule=rule, what="reward function 'f'", count=3)
    while tries.scores is None:
        with tries.one():
            tries.scores = f(...)
    """

    rule: FaultRule
    what: str  # the function, in errors
    count: int  # completions that are scored
    scores: list[Score] | None = None
    _made: int = field(default=0, init=False)

    @property
    def pause_seconds(self) -> float:
        """Before the next try."""
        return _FIRST_PAUSE_SECONDS * 2 ** (self._made - 1) if self._made else 0.0

    @property
    def takes_none(self) -> bool:
        """Whether this try is the last, and what it cannot score is None."""
        return self.rule.gives_none and self._made == self.rule.retries

    @contextmanager
    def one(self) -> Iterator[None]:
        """One try: a fault within it is told of and done with, unless it is the last one's and the run is to end."""
        try:
            yield
        except Exception as error:
            if self._made < self.rule.retries:
                _LOG.warning("%s: it is asked again", self._told(error))
            elif self.rule.gives_none:
                _LOG.warning("%s: None for all %d completions of the call", self._told(error), self.count)
                self.scores = [None] * self.count
            else:
                raise
        finally:
            self._made += 1

    def _told(self, error: Exception) -> str:
        """What happened, in one line that names the function."""
        if isinstance(error, UserError):
            return str(error)
        places = traceback.extract_tb(error.__traceback__)
        where = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
        said = " ".join(f"{type(error).__name__}: {error}"[:_LONGEST].split())
        return f"{self.what} raised {said}{where}"
