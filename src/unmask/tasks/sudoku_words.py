"""4x4 Sudoku in words, as published evaluations pose it: reasoning is free, the grid stands between <answer> tags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from unmask.data.example import Example
from unmask.data.readers.word_problems import check_scoring
from unmask.tasks.base import Task, column
from unmask.tasks.sudoku import Sudoku, is_solved
from unmask.validation import check_range, setting
from unmask.verifiers.answers import before_end, final_answer
from unmask.verifiers.published import d1_sudoku

SIZE = 4
_CELLS = SIZE**2
_INSTRUCTION = (
    "Fill in a 4x4 Sudoku. The puzzle is a string of 16 characters, the grid read row by row from the top left, in "
    "which 0 is an empty cell. Replace every 0 by a digit from 1 to 4, so that each row, each column and each 2x2 box "
    "holds every digit from 1 to 4 once. Leave the other cells as they are. Think step by step between <reasoning> and "
    "</reasoning>. Then write nothing but the whole grid, as a string of 16 digits, between <answer> and </answer>:\n"
    "<reasoning>\nyour steps\n</reasoning>\n<answer>\n16 digits\n</answer>"
)
_QUESTION = "Solve the following Sudoku puzzle: "
_DECORATION = re.compile(r"[\s|,;+\-–—`'\"\[\]()]|\\+[a-z]*")  # of a grid that is drawn
_ALONE = re.compile(rf"(?<![0-9])[0-9]{{{_CELLS}}}(?![0-9])")
_SHOTS_SEED = 20_250_416  # of the puzzles that prompts show, whatever the seed of the examples
_SPARE = 64  # puzzles drawn beyond those asked for, in place of shown ones that come up again


@dataclass(frozen=True, kw_only=True)
class SudokuWords(Task):
    """4x4 Sudoku in words, for models with a tokenizer, zero-shot (arXiv 2602.06462) or few-shot (2510.09541: 3)."""

    name: ClassVar[str] = "sudoku-words"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "test_unseen_grids")
    max_new_tokens: ClassVar[int] = 256

    min_empty: int = setting(8, "fewest empty cells; their number is uniform up to the most")
    max_empty: int = setting(12, "most empty cells")
    data: str | None = setting(
        None,
        "file with the header Puzzle,Solution that replaces the test split and is not trained on",
        names_data=True,
    )
    few_shot: int = setting(0, "solved puzzles that every prompt shows")
    scoring: str = setting("corrected", "corrected, or d1: the published training reward and its score of cells")

    def __post_init__(self) -> None:
        check_scoring(self.scoring)
        check_range("task.few_shot", self.few_shot, 0, 16)
        _ = self._puzzles  # refuses what Sudoku refuses

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """The puzzles of Sudoku, worded; those shown solved in prompts are in no split. See Task.examples."""
        shown = {shot.prompt for shot in self._shots}
        drawn = self._puzzles.examples(split, count + _SPARE if shown else count, seed)
        puzzles = [puzzle for puzzle in drawn if puzzle.prompt not in shown]
        return [self._in_words(puzzle) for puzzle in puzzles[:count]]

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for a valid grid that keeps the given digits, else 0.0.

        With scoring d1 its published training reward: the fraction of empty cells filled as in the recorded solution.
        """
        if self.scoring == "corrected":
            return self._solved(completions, columns)
        return [d1_sudoku.sudoku_reward(*item) for item in _items(completions, columns)]

    def well_formed(self, completion: str) -> bool:
        """Whether the answer is a full grid of the digits 1 to 4."""
        grid = grid_of(completion)
        return len(grid) == _CELLS and set(grid) <= set("1234")

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved": a valid grid that keeps the given digits; and "correct_cells", the score that d1 published.

        "correct_cells" is the fraction of empty cells that d1's reader finds filled as in the recorded solution.
        """
        cells = [
            d1_sudoku.sudoku_correct_cells(completion, puzzle, solution) / max(1, puzzle.count("0"))
            for completion, puzzle, solution in _items(completions, columns)
        ]
        return {"solved": self._solved(completions, columns), "correct_cells": cells}

    def _solved(self, completions: list[str], columns: Mapping[str, list[Any]]) -> list[float]:
        puzzles = column(columns, "puzzle", completions)
        pairs = zip(puzzles, completions, strict=True)
        return [float(is_solved(puzzle, grid_of(completion), SIZE)) for puzzle, completion in pairs]

    @cached_property
    def _puzzles(self) -> Sudoku:
        return Sudoku(size=SIZE, min_empty=self.min_empty, max_empty=self.max_empty, data=self.data)

    @cached_property
    def _shots(self) -> list[Example]:
        return self._puzzles.examples("train", self.few_shot, _SHOTS_SEED) if self.few_shot else []

    def _in_words(self, puzzle: Example) -> Example:
        solved = "".join(f"{_QUESTION}{shot.prompt}\n{_solution(shot)}\n\n" for shot in self._shots)
        return Example(
            prompt=f"{_INSTRUCTION}\n\n{solved}{_QUESTION}{puzzle.prompt}\n",
            solution=_solution(puzzle),
            columns=puzzle.columns,
        )


def grid_of(completion: str) -> str:
    """The grid that a completion gives as its answer, as its digits alone; empty without one.

    Where an answer says more, or a completion has neither <answer> tags nor a box: the last 16 digits that stand alone.

        grid_of("<answer>1 2 | 3 4\\n3 4 | 1 2\\n2 1 | 4 3\\n4 3 | 2 1</answer>")  # "1234341221434321"
    """
    answer = final_answer(completion, ("answer", "boxed"))
    text = before_end(completion) if answer is None else answer
    grid = _DECORATION.sub("", text)
    if len(grid) == _CELLS:
        return grid
    alone = _ALONE.findall(text)
    return alone[-1] if alone else ""


def _items(completions: list[str], columns: Mapping[str, list[Any]]) -> Iterator[tuple[str, str, str]]:
    puzzles, solutions = column(columns, "puzzle", completions), column(columns, "solution", completions)
    return zip(completions, puzzles, solutions, strict=True)


def _solution(puzzle: Example) -> str:
    """A completion in the format that prompts ask for: the rows one by one, then the grid."""
    given, grid = puzzle.prompt, puzzle.solution
    rows = [slice(start, start + SIZE) for start in range(0, _CELLS, SIZE)]
    steps = "\n".join(f"Row {number}: {given[row]} -> {grid[row]}" for number, row in enumerate(rows, 1))
    return f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n{grid}\n</answer>"
