"""One reward function, in TRL's signature: f(prompts, completions, **columns) -> list[float | None]."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from reprlib import repr as short_repr
from typing import Any, TypeVar

from unmask.errors import UserError

Score = float | None  # None: the function does not apply
Arguments = dict[str, list[Any]]
Function = TypeVar("Function", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)

_CACHED = "__unmask_cached__"  # attribute of functions that `cached` has marked
_TEXT_FAULT = re.compile(r"string ind|'str' object")  # what Python says of a text that is used as something else
RAW = "completions_raw"  # argument of functions that read completions with what stands behind their end
WAIT = 30.0  # seconds after which a function that has not answered is named
_LARGEST = 3.4e38  # rewards become tensors of float32


class NotFiniteError(UserError):
    """A score that is NaN or infinite."""


def cached(function: Function) -> Function:
    """Decorator of a reward function whose score of a text never changes, so that it is called once for each text.

    It must depend on nothing but the prompt, completion and columns of that sample: not on the others in the call.
    """
    setattr(function, _CACHED, True)
    return function


def is_cached(function: Callable[..., Any]) -> bool:
    """Whether `cached` has marked the function."""
    return hasattr(function, _CACHED)


def reads_raw(call: Callable[..., Any]) -> bool:
    """Whether a function names an argument `completions_raw`: completions with end marks and what follows them."""
    try:
        return RAW in inspect.signature(call).parameters
    except (TypeError, ValueError):  # said by `check_signature`
        return False


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A callable in TRL's signature, with its name in metrics, its weight in the reward and when it may be called."""

    spec: str  # how the settings name it
    name: str  # in metrics
    call: Callable[..., Any]
    weight: float = 1.0  # in the sum that is the reward
    cached: bool = False  # scores of a text never change and may be remembered
    ahead: bool = False  # may be called in a thread, for some completions of a batch before the others

    @property
    def is_async(self) -> bool:
        """Whether its scores are awaited."""
        return inspect.iscoroutinefunction(self.call) or inspect.iscoroutinefunction(type(self.call).__call__)

    @cached_property
    def reads_raw(self) -> bool:
        """Whether it names `completions_raw`."""
        return reads_raw(self.call)

    def check_signature(self, columns: Mapping[str, list[Any]]) -> None:
        """Raise UserError unless it takes prompts, completions and these columns, and needs nothing else."""
        try:
            raw: Arguments = {RAW: []} if self.reads_raw else {}
            inspect.signature(self.call).bind(prompts=[], completions=[], **raw, **columns)
        except (TypeError, ValueError) as error:
            given = ", ".join(("prompts", "completions", *columns))
            raise UserError(
                f"reward function {self.spec!r} cannot be called: {error}; it is given {given} by name: "
                "take **columns for what it does not use"
            ) from error

    def scores(self, arguments: Arguments) -> list[Score]:
        """Scores of the completions. Raises UserError where it gives anything but one number or None for each."""
        count = len(arguments["completions"])  # before the call, which may change the lists
        with self._named():
            scores = self.call(**arguments)
        return self._checked(scores, count)

    async def awaited_scores(self, arguments: Arguments) -> list[Score]:
        """`scores` of an async function."""
        count = len(arguments["completions"])
        with self._named():
            scores = await self.call(**arguments)
        return self._checked(scores, count)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors say which function raised them, and a call that does not end is told of."""
        try:
            with _told_while_waiting(f"reward function {self.spec!r}"):
                yield
        except SystemExit as error:
            raise UserError(
                f"reward function {self.spec!r} called sys.exit, which would end the run unsaved: return numbers, or "
                "raise an exception that says what is wrong"
            ) from error
        except Exception as error:
            error.add_note(f"raised by the reward function {self.spec!r}")
            if _TEXT_FAULT.search(str(error)):
                error.add_note('completions and prompts are texts, no lists of messages: write c, not c[0]["content"]')
            raise

    def _checked(self, scores: Any, count: int) -> list[Score]:
        if hasattr(scores, "tolist"):
            scores = scores.tolist()
        if not isinstance(scores, list | tuple):
            raise UserError(f"reward function {self.spec!r} gave {short_repr(scores)}: return a list of numbers")
        if len(scores) != count:
            raise UserError(
                f"reward function {self.spec!r} gave {len(scores)} scores of {count} completions: return one for each"
            )
        scores = [_plain(score) for score in scores]
        for score in scores:
            if not _usable(score):
                kind = NotFiniteError if isinstance(score, float) else UserError
                raise kind(
                    f"reward function {self.spec!r} gave {short_repr(score)}: return finite numbers, "
                    "or None where it does not apply"
                )
        return [None if score is None else float(score) for score in scores]


@contextmanager
def _told_while_waiting(what: str) -> Iterator[None]:
    """Log, from another thread, that `what` has not ended after `WAIT` seconds, and after twice as long again."""
    ended = threading.Event()

    def watch() -> None:
        waited = WAIT
        while not ended.wait(waited if waited == WAIT else waited / 2):
            _LOG.warning("%s has not answered for %.0f s: the run waits for it (Ctrl-C ends the run)", what, waited)
            waited *= 2

    threading.Thread(target=watch, daemon=True, name="unmask-waiting").start()
    try:
        yield
    finally:
        ended.set()


def _plain(score: Any) -> Any:
    """A 0-dimensional array or tensor (np.bool_ is one) as Python's own number."""
    return score.tolist() if getattr(score, "ndim", None) == 0 else score


def _usable(score: Any) -> bool:
    """Whether it is None or a number that is one as float32 too; NaN and huge integers are not."""
    return score is None or (issubclass(type(score), Real) and bool(abs(score) <= _LARGEST))


def call_all(functions: Sequence[RewardFunction], arguments: Sequence[Arguments]) -> list[list[Score]]:
    """Each function's scores of its own arguments; async functions run together, after the others."""
    scores = [
        [] if function.is_async else function.scores(own) for function, own in zip(functions, arguments, strict=True)
    ]
    waiting = [place for place, function in enumerate(functions) if function.is_async]

    async def together() -> list[list[Score]]:
        return await asyncio.gather(*(functions[place].awaited_scores(arguments[place]) for place in waiting))

    if waiting:
        for place, awaited in zip(waiting, asyncio.run(together()), strict=True):
            scores[place] = awaited
    return scores
