"""Sudoku in words: prompts, answers in many forms, both scorings, shots that are not trained on."""

import pytest

from unmask.errors import UserError
from unmask.tasks import TASKS
from unmask.tasks.sudoku import solutions
from unmask.tasks.sudoku_words import SudokuWords, grid_of

PUZZLE, GRID = "4320004330100004", "4321124334122134"
DRAWN = "4 3 | 2 1\n1 2 | 4 3\n----+----\n3 4 | 1 2\n2 1 | 3 4"


def score(task, completion, puzzle=PUZZLE, solution=GRID):
    return task.rewards([""], [completion], puzzle=[puzzle], solution=[solution])[0]


@pytest.mark.parametrize(
    "completion",
    [
        f"<reasoning>\n0s\n</reasoning>\n<answer>\n{GRID}\n</answer>",
        f"<answer>\n{GRID}\n</answer><|eot_id|><|endoftext|>",
        f"<answer>{DRAWN}</answer>",
        f"<answer>\n```\n{DRAWN}\n```\n</answer>",
        f"<answer>{', '.join(GRID)}</answer>",
        f"The answer is \\boxed{{{GRID}}}.",
        f"<answer>The solution of {PUZZLE} is {GRID}.</answer>",
        f"From {PUZZLE} it follows: {GRID}",
        f"<answer>{GRID}",
    ],
)
def test_grid_of_reads_a_grid_in_any_form(completion):
    assert grid_of(completion) == GRID
    assert score(SudokuWords(), completion) == 1.0
    assert SudokuWords().well_formed(completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "<answer></answer>",
        PUZZLE,
        f"<answer>{GRID[:-1]}</answer>",
        f"<answer>{GRID}1</answer>",
        "no grid",
        GRID[::-1],
    ],
)
def test_sudoku_words_rewards_refuse_what_is_no_solution(completion):
    assert score(SudokuWords(), completion) == 0.0


def test_sudoku_words_rewards_take_any_valid_grid_and_d1_the_one_on_record():
    puzzle = "4000000000000000"
    record, other = list(solutions(puzzle, 4))[:2]
    answer = f"<answer>{other}</answer>"
    assert score(SudokuWords(), answer, puzzle, record) == 1.0
    shared = sum(a == b for a, b in zip(other[1:], record[1:], strict=True)) / 15
    assert score(SudokuWords(scoring="d1"), answer, puzzle, record) == pytest.approx(shared)
    metrics = SudokuWords().metrics([""], [answer], puzzle=[puzzle], solution=[record])
    assert metrics == {"solved": [1.0], "correct_cells": [pytest.approx(shared)]}


@pytest.mark.parametrize("scoring", ["corrected", "d1"])
@pytest.mark.parametrize("shots", [0, 3])
def test_sudoku_words_examples_have_solutions_that_score_right(scoring, shots):
    task = SudokuWords(scoring=scoring, few_shot=shots)
    for split in task.splits:
        for example in task.examples(split, 5, 1):
            assert score(task, example.solution, **example.columns) == 1.0
            assert example.prompt.count("Solve the following Sudoku puzzle: ") == shots + 1
            assert example.prompt.endswith(f"Solve the following Sudoku puzzle: {example.columns['puzzle']}\n")


def test_sudoku_words_shown_puzzles_are_not_examples():
    task = SudokuWords(few_shot=3)
    shown = {shot.prompt for shot in task._shots}
    assert len(shown) == 3
    examples = task.examples("train", 300, 20_250_416)  # the seed that drew them
    assert len(examples) == 300
    assert not shown & {example.columns["puzzle"] for example in examples}
    assert examples[:7] == task.examples("train", 7, 20_250_416)


def test_sudoku_words_settings_are_checked():
    assert TASKS["sudoku-words"] is SudokuWords
    for settings in ({"scoring": "d2"}, {"few_shot": -1}, {"min_empty": 13}):
        with pytest.raises(UserError):
            SudokuWords(**settings)
