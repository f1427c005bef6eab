"""Sudoku of size 4, 6 or 9: any grid that keeps the givens and obeys the rules is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Any, ClassVar

from unmask.data.example import Example, check_split, digest, in_split
from unmask.data.readers.files import read_csv
from unmask.errors import UserError
from unmask.tasks.base import Task, column, first_accepted
from unmask.validation import check_range, setting

BOX_SHAPES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size: (rows, columns) of a box
UNSEEN_GRIDS = 58  # a fifth of the 288 grids of size 4


@dataclass(frozen=True, kw_only=True)
class Sudoku(Task):
    """Sudoku of size 4, 6 or 9: the prompt is the grid row by row with 0 for an empty cell, the answer the full grid.

    A puzzle may have several solutions; each is right. Size 4 has 288 full grids: the split "test_unseen_grids" is made
    of 58 of them, and no puzzle of "train" or "test" has any of the 58 among its solutions.
    """

    name: ClassVar[str] = "sudoku"

    size: int = setting(4, "4, 6 (boxes of two rows and three columns) or 9")
    min_empty: int = setting(8, "fewest empty cells; their number is uniform up to the most")
    max_empty: int = setting(12, "most empty cells")
    data: str | None = setting(
        None,
        "file with the header Puzzle,Solution that replaces the test split and is not trained on",
        names_data=True,
    )

    def __post_init__(self) -> None:
        if self.size not in BOX_SHAPES:
            raise UserError(f"task.size is {self.size}; choose 4, 6 or 9")
        check_range("task.max_empty", self.max_empty, 1, self.size**2)
        check_range("task.min_empty", self.min_empty, 1, self.max_empty)

    @property
    def splits(self) -> tuple[str, ...]:
        """Size 4 has a split of grids kept from training; larger sizes have too many grids to meet one twice."""
        return ("train", "test", "test_unseen_grids") if self.size == 4 else ("train", "test")

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The digits, and 0 for an empty cell."""
        return tuple(str(digit) for digit in range(self.size + 1))

    @property
    def max_new_tokens(self) -> int:
        """One token per cell; all solutions are equally long, so there is no end token."""
        return self.size**2

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """Random full grids with some cells emptied. See Task.examples."""
        check_split(self, split)
        if split == "test" and self.data is not None:
            return self._published[:count]
        rng = Random(f"{self.name}-{split}-{seed}")
        return [self._draw(rng, split) for _ in range(count)]

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for a full valid grid that keeps the given digits, else 0.0."""
        puzzles = column(columns, "puzzle", completions)
        return [
            float(is_solved(puzzle, completion, self.size))
            for puzzle, completion in zip(puzzles, completions, strict=True)
        ]

    def well_formed(self, completion: str) -> bool:
        """Whether a completion is a full grid of digits that may occur in one."""
        return len(completion) == self.size**2 and set(completion) <= set("123456789"[: self.size])

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved", which is the reward, and "correct_cells", the score that d1 (arXiv 2504.12216) published.

        "correct_cells" is the fraction of empty cells filled as in the recorded solution.
        """
        puzzles = column(columns, "puzzle", completions)
        solutions_on_record = column(columns, "solution", completions)
        return {
            "solved": self.rewards(prompts, completions, **columns),
            "correct_cells": list(map(_correct_cells, puzzles, solutions_on_record, completions)),
        }

    def _draw(self, rng: Random, split: str) -> Example:
        next_grid = _grid_source(self.size, split, rng)
        # Drawn once, so that refusals do not favour some numbers of empty cells.
        empty_count = rng.randint(self.min_empty, self.max_empty)

        def empty_some() -> Example | None:
            grid = next_grid()
            cells = list(grid)
            for cell in rng.sample(range(len(cells)), empty_count):
                cells[cell] = "0"
            puzzle = "".join(cells)
            return _example(puzzle, grid) if self._belongs(puzzle, split) else None

        return first_accepted(empty_some, self, split, "lower task.max_empty")

    def _belongs(self, puzzle: str, split: str) -> bool:
        if split == "test_unseen_grids":
            return True
        if not in_split(puzzle, split) or puzzle in self._published_puzzles:
            return False
        return self.size != 4 or not has_unseen_solution(puzzle)

    @cached_property
    def _published(self) -> list[Example]:
        if self.data is None:
            return []
        return read_csv(self.data, ("Puzzle", "Solution"), self._read)

    @cached_property
    def _published_puzzles(self) -> frozenset[str]:
        return frozenset(example.prompt for example in self._published)

    def _read(self, row: Mapping[str, str]) -> Example:
        cell_count = self.size**2
        # Spreadsheet tools drop the zeros in front.
        puzzle, solution = row["Puzzle"].zfill(cell_count), row["Solution"]
        for name, text in (("Puzzle", puzzle), ("Solution", solution)):
            if len(text) != cell_count or not set(text) <= set(self.vocabulary):
                raise UserError(f"{name} is {text[:90]!r}; write {cell_count} digits from 0 to {self.size}")
        if "0" not in puzzle:
            raise UserError(f"Puzzle {puzzle} has no empty cell; remove the line")
        if not is_solved(puzzle, solution, self.size):
            raise UserError(f"Solution {solution} does not solve {puzzle}; mend or remove the line")
        return _example(puzzle, solution)


def is_solved(puzzle: str, completion: str, size: int) -> bool:
    """Whether a completion is a full valid grid with the puzzle's given digits; surrounding spaces are ignored."""
    grid = completion.strip()
    if len(grid) != size**2 or any(given not in ("0", cell) for given, cell in zip(puzzle, grid, strict=True)):
        return False
    digits = {str(digit) for digit in range(1, size + 1)}
    return all({grid[cell] for cell in unit} == digits for unit in _units(size))


def solutions(puzzle: str, size: int, rng: Random | None = None) -> Iterator[str]:
    """Every solution of a puzzle once, by backtracking; in random order with `rng`."""
    options = {cell: _candidates(puzzle, cell, size) for cell, digit in enumerate(puzzle) if digit == "0"}
    if not options:
        # Givens that clash are seen only here.
        if is_solved(puzzle, puzzle, size):
            yield puzzle
        return
    # The cell with the fewest candidates first: the first solution then comes within milliseconds.
    cell = min(options, key=lambda cell: len(options[cell]))
    if rng is not None:
        rng.shuffle(options[cell])
    for digit in options[cell]:
        yield from solutions(puzzle[:cell] + digit + puzzle[cell + 1 :], size, rng)


def _candidates(puzzle: str, cell: int, size: int) -> list[str]:
    taken = {puzzle[peer] for peer in _peers(size)[cell]}
    return [digit for digit in "123456789"[:size] if digit not in taken]


@cache
def solution_grids() -> tuple[str, ...]:
    """All 288 full grids of size 4, sorted."""
    return tuple(sorted(solutions("0" * 16, 4)))


@cache
def unseen_grids() -> tuple[str, ...]:
    """The 58 grids of size 4 kept from training: always the same, the first by hash."""
    return tuple(sorted(solution_grids(), key=digest)[:UNSEEN_GRIDS])


@cache
def seen_grids() -> tuple[str, ...]:
    """The other 230 grids of size 4, sorted."""
    return tuple(sorted(set(solution_grids()) - set(unseen_grids())))


def has_unseen_solution(puzzle: str) -> bool:
    """Whether one of the unseen grids solves a puzzle of size 4."""
    table = _unseen_by_given()
    remaining = (1 << UNSEEN_GRIDS) - 1
    for given in enumerate(puzzle):
        remaining &= table.get(given, remaining)
    return remaining != 0


@cache
def _unseen_by_given() -> dict[tuple[int, str], int]:
    """For each (cell, digit), the set of unseen grids that have it, as bits of an integer."""
    table = dict.fromkeys(((cell, digit) for cell in range(16) for digit in "1234"), 0)
    for number, grid in enumerate(unseen_grids()):
        for given in enumerate(grid):
            table[given] |= 1 << number
    return table


def _grid_source(size: int, split: str, rng: Random) -> Callable[[], str]:
    """Give a function that draws a grid for a split at each call, at little cost."""
    if size == 4:
        grids = unseen_grids() if split == "test_unseen_grids" else seen_grids()
        return lambda: rng.choice(grids)
    # One search serves all calls: a grid stays valid when its digits change names.
    grid = next(solutions("0" * size**2, size, rng))
    digits = "123456789"[:size]
    return lambda: grid.translate(str.maketrans(digits, "".join(rng.sample(digits, size))))


@cache
def _units(size: int) -> list[set[int]]:
    """The cells of each row, column and box."""
    height, width = BOX_SHAPES[size]
    units: dict[tuple[str, int], set[int]] = {}
    for cell in range(size**2):
        row, place = divmod(cell, size)
        box = row // height * height + place // width
        for unit in (("row", row), ("column", place), ("box", box)):
            units.setdefault(unit, set()).add(cell)
    return list(units.values())


@cache
def _peers(size: int) -> list[set[int]]:
    """For each cell, the other cells of its row, column and box."""
    return [set().union(*(unit for unit in _units(size) if cell in unit)) - {cell} for cell in range(size**2)]


def _correct_cells(puzzle: str, solution: str, completion: str) -> float:
    # A short completion is wrong in the cells that it lacks.
    grid = completion.strip().ljust(len(puzzle))
    empty = [cell for cell, digit in enumerate(puzzle) if digit == "0"]
    return sum(grid[cell] == solution[cell] for cell in empty) / max(1, len(empty))


def _example(puzzle: str, grid: str) -> Example:
    return Example(prompt=puzzle, solution=grid, columns={"puzzle": puzzle, "solution": grid})
