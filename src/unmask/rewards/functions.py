"""One reward function, in TRL's signature: f(prompts, completions, **columns) -> list[float | None]."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from reprlib import repr as short_repr
from typing import Any, TypeVar

from unmask.errors import UserError
from unmask.rewards.calls import Interrupted, bounded_output, heard, interrupted_after, told_while_waiting
from unmask.rewards.faults import FaultRule, Score, Tries

Arguments = dict[str, list[Any]]
Function = TypeVar("Function", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)

_CACHED = "__unmask_cached__"  # attribute of functions that `cached` has marked
_TEXT_FAULT = re.compile(r"string ind|'str' object")  # what Python says of a text that is used as something else
RAW = "completions_raw"  # argument of functions that read completions with what stands behind their end
_LOOP_SECONDS = 1.0  # after the time limit of async functions, until their event loop is interrupted
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
    faults: FaultRule = field(default_factory=FaultRule)
    is_only: bool = False  # no other function gives a reward where it does not

    @property
    def what(self) -> str:
        """How errors call it."""
        return f"reward function {self.spec!r}"

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
        """Scores of the completions. Raises UserError where it gives anything but one number or None for each.

        A call that fails is made again, or its scores are None, as `faults` says.
        """
        tries = self._tries(arguments)
        while tries.scores is None:
            time.sleep(tries.pause_seconds)
            with tries.one():
                with self._named(), self._limited():
                    scores = self.call(**_copied(arguments))
                tries.scores = self._checked(scores, tries)
        return tries.scores

    def _limited(self) -> AbstractContextManager[None]:
        return interrupted_after(self.faults.timeout_seconds, by_force=self.faults.ends_process)

    async def awaited_scores(self, arguments: Arguments) -> list[Score]:
        """`scores` of an async function."""
        tries = self._tries(arguments)
        while tries.scores is None:
            await asyncio.sleep(tries.pause_seconds)
            with tries.one():
                with self._named():
                    scores = await self._in_time(self.call(**_copied(arguments)))
                tries.scores = self._checked(scores, tries)
        return tries.scores

    async def _in_time(self, waiting: Awaitable[Any]) -> Any:
        limit = asyncio.timeout(self.faults.timeout_seconds or None)
        try:
            async with limit:
                return await waiting
        except TimeoutError as error:
            if limit.expired():
                raise Interrupted from error
            raise

    def _tries(self, arguments: Arguments) -> Tries:
        return Tries(rule=self.faults, what=self.what, count=len(arguments["completions"]))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors say which function raised them; a call that does not end is told of, what it prints is bounded."""
        try:
            with told_while_waiting(self.what), heard(self.what):
                yield
        except SystemExit as error:
            raise UserError(
                f"{self.what} called sys.exit, which would end the run unsaved: return numbers, or "
                "raise an exception that says what is wrong"
            ) from error
        except Interrupted as error:
            raise timed_out([self], self.faults.timeout_seconds) from error
        except BaseException as error:
            error.add_note(f"raised by the {self.what}")
            if _TEXT_FAULT.search(str(error)):
                error.add_note('completions and prompts are texts, no lists of messages: write c, not c[0]["content"]')
            raise

    def _checked(self, scores: Any, tries: Tries) -> list[Score]:
        if hasattr(scores, "tolist"):
            scores = scores.tolist()
        if not isinstance(scores, list | tuple):
            raise UserError(f"{self.what} gave {short_repr(scores)}: return a list of numbers")
        if len(scores) != tries.count:
            raise UserError(f"{self.what} gave {len(scores)} scores of {tries.count} completions: return one for each")
        scores = [_plain(score) for score in scores]
        odd = [score for score in scores if not _usable(score)]
        if odd and not tries.takes_none:
            kind = NotFiniteError if isinstance(odd[0], float) else UserError
            raise kind(f"{self.what} gave {short_repr(odd[0])}: return finite numbers, or None where it does not apply")
        if odd:
            _LOG.warning("%s gave %s: None for %d of %d", self.what, short_repr(odd[0]), len(odd), tries.count)
        return [float(score) if score is not None and _usable(score) else None for score in scores]


def timed_out(functions: Sequence[RewardFunction], limit_seconds: float) -> UserError:
    """What to say of functions whose call has reached its time limit."""
    what = " and ".join(function.what for function in functions)
    mend = "raise reward.timeout_seconds if it needs longer"
    if not any(function.is_only for function in functions):
        mend += ", or have reward.on_fault none leave it out where it fails"
    return UserError(f"{what} has not answered for {limit_seconds:g} s: {mend}")


def _copied(arguments: Arguments) -> Arguments:
    """Lists of its own for each try of a function, which may change them."""
    return {name: list(values) for name, values in arguments.items()}


def _plain(score: Any) -> Any:
    """A 0-dimensional array or tensor (np.bool_ is one) as Python's own number."""
    return score.tolist() if getattr(score, "ndim", None) == 0 else score


def _usable(score: Any) -> bool:
    """Whether it is None or a number that is one as float32 too; NaN and huge integers are not."""
    return score is None or (issubclass(type(score), Real) and bool(abs(score) <= _LARGEST))


def call_all(functions: Sequence[RewardFunction], arguments: Sequence[Arguments]) -> list[list[Score]]:
    """Each function's scores of its own arguments; async functions run together, after the others."""
    with bounded_output():
        scores = [
            [] if function.is_async else function.scores(own)
            for function, own in zip(functions, arguments, strict=True)
        ]
        waiting = [place for place, function in enumerate(functions) if function.is_async]
        awaited = _awaited([functions[place] for place in waiting], [arguments[place] for place in waiting])
    for place, found in zip(waiting, awaited, strict=True):
        scores[place] = found
    return scores


def _awaited(functions: Sequence[RewardFunction], arguments: Sequence[Arguments]) -> list[list[Score]]:
    """Scores of async functions, which run together in one event loop."""
    if not functions:
        return []

    async def together() -> list[list[Score]]:
        pairs = zip(functions, arguments, strict=True)
        return await asyncio.gather(*(function.awaited_scores(own) for function, own in pairs))

    # The loop keeps their time limits. This one is for a function that blocks it, or that cannot be cancelled.
    limits = [function.faults.longest_seconds for function in functions]
    longest_seconds = max(limits) + _LOOP_SECONDS if all(limits) else 0.0
    try:
        by_force = all(function.faults.ends_process for function in functions)
        with interrupted_after(longest_seconds, by_force=by_force):
            return asyncio.run(together())
    except Interrupted as error:
        raise timed_out(functions, longest_seconds) from error
