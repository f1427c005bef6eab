"""Puzzles that are generated on the spot, each with a reward that checks a completion exactly."""

from __future__ import annotations

from unmask.tasks.arithmetic import Arithmetic
from unmask.tasks.base import Example, Task
from unmask.tasks.countdown import Countdown
from unmask.tasks.sudoku import Sudoku

TASKS: dict[str, type[Sudoku] | type[Countdown] | type[Arithmetic]] = {
    "sudoku": Sudoku,
    "countdown": Countdown,
    "arithmetic": Arithmetic,
}

__all__ = ["TASKS", "Arithmetic", "Countdown", "Example", "Sudoku", "Task"]
