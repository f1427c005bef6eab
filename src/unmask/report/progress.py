"""Progress of a training run: a bar in a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class TrainingProgress:
    """Context manager that shows step, reward, solve rate, speed and time left of a run."""

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        console: Console | None = None,
        plain_interval_seconds: float = 10.0,
    ) -> None:
        from unmask.report.terminal import OutputConsole

        self._total_steps = total_steps
        self._first_step = first_step
        self._console = console or OutputConsole()
        self._plain_interval_seconds = plain_interval_seconds
        self._bar = _bar(self._console, total_steps, first_step) if self._console.is_terminal else None
        self._start_seconds = time.monotonic()
        self._printed_seconds = -float("inf")

    def __enter__(self) -> Self:
        self._start_seconds = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, figures: str) -> None:
        """Show that `step` steps are done, with the figures of the last one, such as "reward 0.512"."""
        now_seconds = time.monotonic()
        speed = (step - self._first_step) / max(now_seconds - self._start_seconds, 1e-9)
        figures = with_speed(figures, speed, self._total_steps - step)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, figures=figures)
        elif self._is_due(step, now_seconds):
            self._printed_seconds = now_seconds
            self.message(f"step {step}/{self._total_steps}  {figures}")

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _is_due(self, step: int, now_seconds: float) -> bool:
        waited_seconds = now_seconds - self._printed_seconds
        return waited_seconds >= self._plain_interval_seconds or step == self._total_steps


def with_speed(figures: str, steps_per_second: float, steps_left: int) -> str:
    """The figures of one step with speed and time left: `reward 0.512  0.9 steps/s  2:01 left`."""
    if steps_per_second <= 0:
        return figures
    digits = ".0f" if steps_per_second >= 10 else ".2g"
    return f"{figures}  {steps_per_second:{digits}} steps/s  {_clock(steps_left / steps_per_second)} left"


def _clock(seconds: float) -> str:
    minutes, rest_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_seconds:02}" if hours else f"{minutes}:{rest_seconds:02}"


def _bar(console: Console, total_steps: int, first_step: int) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}"),
    )
    bar = Progress(*columns, console=console, expand=True)
    bar.add_task("training", total=total_steps, completed=first_step, figures="")
    return bar
