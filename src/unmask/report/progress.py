"""Progress of a command, phase by phase: bars in a terminal, elsewhere plain lines, never half a minute apart.

It is ambient, as logging is: `phase` and `advance` reach the Progress that `telling` has made current, and nobody where
there is none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

    from unmask.report.bars import Bars

LINE_SECONDS = 10.0  # from line to line of a phase that moves
SILENT_SECONDS = 20.0  # without any line, until a phase that stands still is told of again
_BEAT_SECONDS = 5.0  # how often that is looked at
_LONG_SECONDS = 2.0  # a phase that took as long ends with a line


@dataclass(kw_only=True)
class _Phase:
    name: str
    unit: str
    total: int | None  # units; None: they cannot be counted
    done: int
    done_before: int  # when it began
    begin_seconds: float
    moved_seconds: float  # when it last went on
    within_seconds: float = 0.0  # of phases within it, which are no part of its pace
    figures: str = ""
    doing: str = "the next"  # what the unit that is not done yet is at
    bar: TaskID | None = None

    def head(self) -> str:
        """Its name and how much is done."""
        return self.name if self.total is None else f"{self.name} {self.done}/{self.total}"

    def speed(self, now_seconds: float) -> float:
        """Units a second of its own time."""
        own_seconds = now_seconds - self.begin_seconds - self.within_seconds
        return (self.done - self.done_before) / max(own_seconds, 1e-9)

    def pace(self, now_seconds: float) -> str:
        """Figures of what was done last, speed and time left."""
        speed = self.speed(now_seconds)
        if self.total is None or speed <= 0:
            return self.figures
        left = f"{_clock((self.total - self.done) / speed)} left" if self.done < self.total else ""
        return _joined(self.figures, speed_words(speed, self.unit), left)

    def end(self, now_seconds: float) -> str:
        """The line that is left of it."""
        speed = self.speed(now_seconds)
        words = speed_words(speed, self.unit) if speed > 0 else ""
        return _joined(self.head(), self.figures, words, f"in {_clock(now_seconds - self.begin_seconds)}")


class Progress:
    """Tells the phases of a command on a console: as bars where it is a terminal, else as plain lines.

    A phase that stands still, such as a step of minutes, is told of again after 20 seconds. Only the first rank speaks.
    `console`: standard output's unless given, or with `aside` that of standard error. `clock`: seconds that never go
    back; `beat_seconds`: how often silence is looked at.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        aside: bool = False,
        clock: Callable[[], float] = time.monotonic,
        beat_seconds: float = _BEAT_SECONDS,
    ) -> None:
        self._given_console, self._aside = console, aside
        self._clock, self._beat_seconds = clock, beat_seconds
        self._speaks = os.environ.get("RANK", "0") == "0"
        self._phases: list[_Phase] = []
        self._bars: Bars | None = None
        self._watches = False
        self._told_seconds = clock()
        self._lock = threading.RLock()

    @cached_property
    def _console(self) -> Console:
        from unmask.report.terminal import OutputConsole  # late: help and wrong arguments need none

        return self._given_console or OutputConsole(stderr=self._aside)

    @contextmanager
    def phase(self, name: str, total: int | None = None, *, done: int = 0, unit: str = "step") -> Iterator[None]:
        """Tell of a phase while it lasts; `total` units, of which `done` are done already (None: not counted).

        A phase may lie within another, whose pace and time left it is no part of.
        """
        now = self._clock()
        phase = _Phase(
            name=name, unit=unit, total=total, done=done, done_before=done, begin_seconds=now, moved_seconds=now
        )
        with nullcontext() if self._phases or not self._speaks else self._showing():
            self._begin(phase)
            succeeded = False
            try:
                yield
                succeeded = True
            finally:
                self._end(phase, succeeded)

    def advance(self, count: int = 1, figures: str = "") -> None:
        """Tell that `count` further units of the innermost phase are done, with figures of the last ("loss 0.512")."""
        with self._lock:
            if not self._phases:
                return
            phase, now = self._phases[-1], self._clock()
            phase.done, phase.figures, phase.moved_seconds = phase.done + count, figures, now
            phase.doing = "the next"
            self._draw(phase, now)
            due = phase.done != phase.total and now - self._told_seconds >= LINE_SECONDS  # its end has a line
            if self._bars is None and due:
                self._tell(_joined(phase.head(), phase.pace(now)))

    def doing(self, what: str) -> None:
        """Note what the next unit of the innermost phase is at now, such as "sampling": told if it lasts."""
        with self._lock:
            if self._phases:
                self._phases[-1].doing, self._phases[-1].moved_seconds = what, self._clock()

    def message(self, text: str) -> None:
        """Print a line of its own, above the bars where there are some."""
        with self._lock:
            if self._speaks:
                self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def watch(self) -> None:
        """Have what `show` is given drawn below the bars; where there is no terminal, say that nothing will be."""
        self._watches = self._speaks and self._draws
        if not self._watches:
            self.message("--watch needs a terminal to draw in: this output has lines alone")

    @property
    def watches(self) -> bool:
        """Whether what `show` is given is drawn."""
        return self._watches

    def show(self, view: RenderableType) -> None:
        """Draw a renderable of rich below the bars, again at each of their refreshes, in place of the one before."""
        with self._lock:
            if self._watches and self._bars is not None:
                self._bars.view = view

    @property
    def _draws(self) -> bool:
        """Whether the output takes bars: a terminal, or a notebook with widgets."""
        in_notebook = self._console.is_jupyter and find_spec("ipywidgets") is not None
        return self._console.is_terminal or in_notebook

    def beat(self) -> None:
        """Tell of the innermost phase again where nothing has been told for long."""
        with self._lock:
            now = self._clock()
            if self._phases and now - self._told_seconds >= SILENT_SECONDS:
                phase = self._phases[-1]
                what = "" if phase.total in (None, phase.done) else f"{phase.doing}: "
                so_far = f"{what}{_clock(now - phase.moved_seconds)} so far"
                self._tell(_joined(phase.head(), phase.pace(now), so_far))

    def _begin(self, phase: _Phase) -> None:
        with self._lock:
            self._phases.append(phase)
            if self._bars is None:
                self._tell(phase.head())
            else:
                phase.bar = self._bars.add_task(phase.head(), total=phase.total, completed=phase.done, figures="")

    def _end(self, phase: _Phase, succeeded: bool) -> None:
        with self._lock:
            self._phases.remove(phase)
            now = self._clock()
            seconds = now - phase.begin_seconds
            if self._phases:
                self._phases[-1].within_seconds += seconds
                self._phases[-1].moved_seconds = now
            if self._bars is not None and phase.bar is not None:
                self._bars.remove_task(phase.bar)
            if succeeded and (phase.figures or seconds >= _LONG_SECONDS):
                self._tell(phase.end(now))

    def _tell(self, line: str) -> None:
        self._told_seconds = self._clock()
        self.message(line)

    def _draw(self, phase: _Phase, now_seconds: float) -> None:
        if self._bars is not None and phase.bar is not None:
            self._bars.update(
                phase.bar, completed=phase.done, description=phase.head(), figures=phase.pace(now_seconds)
            )

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """What goes on while there is a phase: bars, or a thread that breaks silence."""
        if self._draws:
            from unmask.report.bars import Bars

            try:
                with Bars(self._console) as self._bars:
                    yield
            finally:
                self._bars = None
            return
        over = threading.Event()
        thread = threading.Thread(target=self._break_silence, args=(over,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _break_silence(self, over: threading.Event) -> None:
        with suppress(BrokenPipeError):  # the next line of the command itself meets it too
            while not over.wait(self._beat_seconds):
                self.beat()


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def telling(progress: Progress | None = None) -> Iterator[Progress]:
    """Make `progress` the one that `phase`, `advance` and `message` reach; None: the current one, or a new one."""
    progress = progress or _CURRENT.get() or Progress()
    token = _CURRENT.set(progress)
    try:
        yield progress
    finally:
        _CURRENT.reset(token)


@contextmanager
def phase(name: str, total: int | None = None, *, done: int = 0, unit: str = "step") -> Iterator[None]:
    """Tell of a phase while it lasts. See Progress.phase."""
    progress = _CURRENT.get()
    with nullcontext() if progress is None else progress.phase(name, total, done=done, unit=unit):
        yield


def advance(count: int = 1, figures: str = "") -> None:
    """Tell that `count` further units of the innermost phase are done. See Progress.advance."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.advance(count, figures)


def doing(what: str) -> None:
    """Note what the next unit of the innermost phase is at now. See Progress.doing."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.doing(what)


def message(text: str) -> None:
    """Print a line of its own, above the bars where there are some."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.message(text)


def watch_completions() -> None:
    """Have what `show` is given drawn, where there is a terminal. See Progress.watch."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.watch()


def shows() -> bool:
    """Whether what `show` is given is drawn: it need not be made elsewhere."""
    progress = _CURRENT.get()
    return progress is not None and progress.watches


def show(view: RenderableType) -> None:
    """Draw a renderable of rich below the bars. See Progress.show."""
    progress = _CURRENT.get()
    if progress is not None:
        progress.show(view)


def speed_words(units_per_second: float, unit: str) -> str:
    """A speed in two digits or whole numbers: `0.9 steps/s`, `0.012 steps/s`, `123 steps/s`."""
    digits = ".0f" if units_per_second >= 10 else ".2g"
    return f"{units_per_second:{digits}} {unit}s/s"


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes, rest_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_seconds:02}" if hours else f"{minutes}:{rest_seconds:02}"
