"""The tasks: generated puzzles and problems from files, each with a reward that checks a completion.

`TASKS` has one row a task; `Task` (base.py) says what a task must have.
"""

from __future__ import annotations

from unmask.data.example import Example
from unmask.tasks.arithmetic import Arithmetic
from unmask.tasks.base import Task
from unmask.tasks.code import Code
from unmask.tasks.countdown import Countdown
from unmask.tasks.countdown_words import CountdownWords
from unmask.tasks.dataset import Dataset
from unmask.tasks.gsm8k import GSM8K
from unmask.tasks.math500 import Math500
from unmask.tasks.pairs import Pairs
from unmask.tasks.sudoku import Sudoku
from unmask.tasks.sudoku_words import SudokuWords

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Sudoku,
        SudokuWords,
        Countdown,
        Arithmetic,
        CountdownWords,
        GSM8K,
        Math500,
        Code,
        Dataset,
        Pairs,
    )
}

__all__ = [
    "GSM8K",
    "TASKS",
    "Arithmetic",
    "Code",
    "Countdown",
    "CountdownWords",
    "Dataset",
    "Example",
    "Math500",
    "Pairs",
    "Sudoku",
    "SudokuWords",
    "Task",
]
