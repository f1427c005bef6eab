"""Sudoku: all grids, disjoint splits, and a reward for every valid grid and nothing else."""

from __future__ import annotations

from hashlib import blake2b
from itertools import permutations, product
from random import Random
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import UserError
from unmask.tasks import Sudoku
from unmask.tasks.sudoku import (
    has_unseen_solution,
    is_solved,
    seen_grids,
    solution_grids,
    solutions,
    unseen_grids,
)

PUZZLE, SOLUTION = "3102200002100320", "3142243142131324"
SIX = "123456456123231564564231312645645312"
NINE = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def reward(puzzle: str, completion: str, size: int = 4) -> float:
    return Sudoku(size=size).rewards([puzzle], [completion], puzzle=[puzzle], solution=[""])[0]


def fits(puzzle: str, grid: str) -> bool:
    return all(given in ("0", digit) for given, digit in zip(puzzle, grid, strict=True))


def test_solution_grids_by_brute_force() -> None:
    rows = ["".join(row) for row in permutations("1234")]
    valid = [
        "".join(grid)
        for grid in product(rows, repeat=4)
        if all(len(set(line)) == 4 for line in zip(*grid, strict=True))
        and all(len(set(grid[r][c : c + 2] + grid[r + 1][c : c + 2])) == 4 for r in (0, 2) for c in (0, 2))
    ]
    assert len(valid) == 288
    assert list(solution_grids()) == sorted(valid)


def test_unseen_grids_are_fixed_for_ever() -> None:
    assert len(unseen_grids()) == len(set(unseen_grids())) == 58
    assert len(seen_grids()) == 230
    assert set(unseen_grids()) | set(seen_grids()) == set(solution_grids())
    assert blake2b("".join(sorted(unseen_grids())).encode(), digest_size=8).hexdigest() == "ea40e7dca78fa711"


def test_sudoku_splits_of_size_4_share_no_puzzle_and_no_unseen_grid() -> None:
    task = Sudoku(min_empty=1, max_empty=12)
    prompts = {
        split: {example.prompt for seed in range(3) for example in task.examples(split, 700, seed)}
        for split in task.splits
    }
    assert not prompts["train"] & prompts["test"]
    for puzzle in list(prompts["train"])[:500] + list(prompts["test"])[:500]:
        assert not any(fits(puzzle, grid) for grid in unseen_grids())
    for puzzle in prompts["test_unseen_grids"]:
        assert any(fits(puzzle, grid) for grid in unseen_grids())


@given(st.text(alphabet="01234", min_size=16, max_size=16))
@settings(deadline=None)
def test_has_unseen_solution_finds_unseen_solutions(puzzle: str) -> None:
    assert has_unseen_solution(puzzle) == any(fits(puzzle, grid) for grid in unseen_grids())


@pytest.mark.parametrize(("size", "count"), [(6, 60), (9, 20)])
def test_sudoku_splits_of_other_sizes_share_no_puzzle(size: int, count: int) -> None:
    # Nearly empty puzzles, of which there are few, so that the same ones come again and again.
    task = Sudoku(size=size, min_empty=size**2 - 1, max_empty=size**2 - 1)
    train = {example.prompt for example in task.examples("train", count, 0)}
    test = {example.prompt for example in task.examples("test", count, 1)}
    assert min(len(train), len(test)) > 10
    assert not train & test


@pytest.mark.parametrize(
    ("size", "split", "count"),
    [
        (4, "train", 500),
        (4, "test", 200),
        (4, "test_unseen_grids", 200),
        (6, "train", 20),
        (6, "test", 20),
        (9, "train", 5),
        (9, "test", 5),
    ],
)
def test_sudoku_every_solution_is_right(size: int, split: str, count: int) -> None:
    task = Sudoku(size=size, min_empty=size, max_empty=3 * size)
    for example in task.examples(split, count, 7):
        assert example.columns == {"puzzle": example.prompt, "solution": example.solution}
        assert len(example.prompt) == len(example.solution) == task.max_new_tokens == size**2
        assert set(example.prompt + example.solution) <= set(task.vocabulary)
        assert size <= example.prompt.count("0") <= 3 * size
        scores = task.metrics(
            [example.prompt], [example.solution], puzzle=[example.prompt], solution=[example.solution]
        )
        assert scores == {"solved": [1.0], "correct_cells": [1.0]}


def test_sudoku_numbers_of_empty_cells_are_uniform() -> None:
    counts = [example.prompt.count("0") for example in Sudoku().examples("train", 5000, 0)]
    assert set(counts) == {8, 9, 10, 11, 12}
    assert all(850 < counts.count(empty) < 1150 for empty in range(8, 13))


def test_sudoku_every_seen_grid_is_drawn() -> None:
    drawn = {example.solution for example in Sudoku().examples("train", 5000, 0)}
    assert drawn == set(seen_grids())


@given(st.integers(0, 20), st.integers(0, 20), st.integers())
@settings(deadline=None, max_examples=20)
def test_sudoku_examples_are_a_stable_prefix(first: int, second: int, seed: int) -> None:
    task = Sudoku()
    shorter, longer = sorted((first, second))
    for split in task.splits:
        assert task.examples(split, longer, seed)[:shorter] == task.examples(split, shorter, seed)


def test_sudoku_seeds_differ_and_are_the_same_on_every_machine() -> None:
    task = Sudoku()
    assert task.examples("train", 1, 0)[0].prompt == "4000010010230041"
    assert task.examples("train", 20, 0) != task.examples("train", 20, 1)


def test_sudoku_any_valid_completion_is_right() -> None:
    puzzle = "3000000000000001"
    answers = [grid for grid in solution_grids() if fits(puzzle, grid)]
    assert len(answers) > 10
    assert sorted(solutions(puzzle, 4)) == answers
    assert all(reward(puzzle, answer) == 1.0 for answer in answers)
    others = set(solution_grids()) - set(answers)
    assert not any(reward(puzzle, other) for other in others)


@given(st.sampled_from(range(288)), st.integers(0, 15), st.sampled_from("01234x５ "))
@settings(deadline=None)
def test_sudoku_one_changed_cell_is_wrong(number: int, cell: int, digit: str) -> None:
    grid = solution_grids()[number]
    changed = grid[:cell] + digit + grid[cell + 1 :]
    assert reward("0" * 16, changed) == float(changed == grid)


@given(st.text(alphabet="1234", min_size=16, max_size=16))
@settings(deadline=None)
def test_sudoku_only_grids_are_right(completion: str) -> None:
    assert reward("0" * 16, completion) == float(completion in solution_grids())


@pytest.mark.parametrize(
    "completion",
    [
        "",
        PUZZLE,
        SOLUTION[:-1],
        SOLUTION + "1",
        SOLUTION + SOLUTION,
        " ".join(SOLUTION),
        "1" * 10_000_000,
        "\x00" * 16,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_sudoku_wrong_completions_get_nothing(completion: str) -> None:
    assert reward(PUZZLE, SOLUTION) == reward(PUZZLE, f" {SOLUTION}\n") == 1.0
    assert reward(PUZZLE, completion) == 0.0


@pytest.mark.parametrize(("size", "grid"), [(6, SIX), (9, NINE)])
def test_sudoku_rows_columns_and_boxes_of_other_sizes(size: int, grid: str) -> None:
    empty = "0" * size**2
    assert reward(empty, grid, size) == 1.0
    # Every row and column is still right after two rows of different boxes change places, the boxes are not.
    rows = [grid[start : start + size] for start in range(0, size**2, size)]
    rows[0], rows[-1] = rows[-1], rows[0]
    assert reward(empty, "".join(rows), size) == 0.0
    shifted = "".join("123456789"[:size][k:] + "123456789"[:size][:k] for k in range(size))
    assert reward(empty, shifted, size) == 0.0


def test_sudoku_correct_cells_counts_empty_cells_against_the_solution() -> None:
    def correct_cells(completion: str) -> float:
        columns = {"puzzle": [PUZZLE], "solution": [SOLUTION]}
        return Sudoku().metrics([PUZZLE], [completion], **columns)["correct_cells"][0]

    empty = [cell for cell, digit in enumerate(PUZZLE) if digit == "0"]
    assert len(empty) == 8
    assert correct_cells(SOLUTION) == 1.0
    assert correct_cells(PUZZLE) == 0.0
    assert correct_cells("") == 0.0
    for kept in range(9):
        cells = list(SOLUTION)
        for cell in empty[kept:]:
            cells[cell] = "0"
        assert correct_cells("".join(cells)) == kept / 8
    # A wrong given does not count, and neither does text beyond the grid.
    assert correct_cells("4" + SOLUTION[1:] + "999") == 1.0
    # A short completion is judged by the cells that it has.
    assert correct_cells(SOLUTION[:8]) == sum(cell < 8 for cell in empty) / 8


def test_sudoku_correct_cells_and_solved_differ_where_solutions_are_many() -> None:
    puzzle = "3000000000000001"
    first, second, *_ = solutions(puzzle, 4)
    scores = Sudoku().metrics([puzzle], [second], puzzle=[puzzle], solution=[first])
    assert scores["solved"] == [1.0]
    assert 0.0 <= scores["correct_cells"][0] < 1.0


def test_solutions_of_clashing_and_full_puzzles() -> None:
    assert list(solutions("1100000000000000", 4)) == []
    assert list(solutions(SOLUTION, 4)) == [SOLUTION]
    assert list(solutions(NINE[:40] + "0" * 10 + NINE[50:], 9)) == [NINE]


def test_sudoku_random_grids_reach_far() -> None:
    rng = Random(0)
    assert {next(solutions("0" * 16, 4, rng)) for _ in range(2500)} == set(solution_grids())
    grids = {next(solutions("0" * 36, 6, rng)) for _ in range(20)}
    assert len(grids) == 20
    assert all(is_solved("0" * 36, grid, 6) for grid in grids)


def test_sudoku_generation_is_fast() -> None:
    start = perf_counter()
    assert len(Sudoku().examples("train", 10_000, 0)) == 10_000
    assert perf_counter() - start < 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5}, "size is 5; choose 4, 6 or 9"),
        ({"min_empty": 0}, "min_empty is 0; choose an integer from 1 to 12"),
        ({"min_empty": 13}, "min_empty is 13"),
        ({"max_empty": 17}, "max_empty is 17; choose an integer from 1 to 16"),
        ({"size": 6, "max_empty": 37}, "max_empty is 37"),
    ],
)
def test_sudoku_refuses_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sudoku(**options)  # type: ignore[arg-type]


def test_sudoku_refuses_wrong_use() -> None:
    with pytest.raises(UserError, match="'dev'; choose one of train, test, test_unseen_grids"):
        Sudoku().examples("dev", 1, 0)
    with pytest.raises(UserError, match=r"no split 'test_unseen_grids'; choose one of train, test$"):
        Sudoku(size=9).examples("test_unseen_grids", 1, 0)
    with pytest.raises(UserError, match=r"max_empty=16.*'train'; lower task.max_empty"):
        Sudoku(min_empty=16, max_empty=16).examples("train", 1, 0)
    with pytest.raises(UserError, match="'puzzle'"):
        Sudoku().rewards([""], [""])


def test_sudoku_well_formed_is_a_full_grid_of_digits() -> None:
    task = Sudoku()
    assert task.well_formed("1" * 16)
    assert [text for text in ("1" * 15, "1" * 17, "0" * 16, "5" * 16, "", " " * 16) if task.well_formed(text)] == []
