"""Countdown: generation, splits, and a reward that only a right expression gets."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.example import Example
from unmask.errors import UserError
from unmask.tasks import Countdown
from unmask.tasks.countdown import solve
from unmask.verifiers.expressions import numbers, value


def reward(completion: str, given: list[int], target: int) -> float:
    return Countdown().rewards([""], [completion], numbers=[given], target=[target])[0]


def key(example: Example) -> tuple[object, ...]:
    given, target = example.prompt.removesuffix(":").split("=")
    return (*sorted(map(int, given.split())), target)


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_countdown_every_solution_is_right(count: int, split: str) -> None:
    task = Countdown(count=count)
    for example in task.examples(split, 150, 5):
        given, target = example.columns["numbers"], example.columns["target"]
        assert isinstance(given, list)
        assert isinstance(target, int)
        assert len(given) == count
        assert all(1 <= number <= 20 for number in given)
        assert 1 <= target <= 100
        assert example.prompt == f"{' '.join(map(str, given))}={target}:"
        assert " " not in example.solution
        assert reward(example.solution, given, target) == 1.0
        tokens = re.findall(r"[0-9]+|[^0-9]", example.prompt + example.solution)
        assert set(tokens) <= set(task.vocabulary)
        assert len(re.findall(r"[0-9]+|[^0-9]", example.solution)) + 1 <= task.max_new_tokens


def test_countdown_all_signs_and_parentheses_occur() -> None:
    letters = Counter("".join(example.solution for example in Countdown().examples("train", 1000, 0)))
    assert all(letters[sign] > 50 for sign in "+-*/(")


def test_countdown_splits_share_no_puzzle_in_any_order_of_numbers() -> None:
    # Few numbers, so that the same puzzles come again and again.
    task = Countdown(max_number=8, max_target=30)
    train = {key(example) for seed in range(2) for example in task.examples("train", 1500, seed)}
    test = {key(example) for seed in range(3) for example in task.examples("test", 200, seed)}
    assert len(train) > 800
    assert len(test) > 50
    assert not train & test


@given(st.integers(0, 15), st.integers(0, 15), st.integers())
@settings(deadline=None, max_examples=20)
def test_countdown_examples_are_a_stable_prefix(first: int, second: int, seed: int) -> None:
    task = Countdown()
    shorter, longer = sorted((first, second))
    assert task.examples("train", longer, seed)[:shorter] == task.examples("train", shorter, seed)


def test_countdown_seeds_and_splits_differ() -> None:
    task = Countdown()
    assert task.examples("train", 20, 0) != task.examples("train", 20, 1)
    assert task.examples("train", 3, 0)[0].prompt == "4 2 12=96:"  # the same on every machine


@pytest.mark.parametrize("completion", ["8/(3-8/3)", " 8 / ( 3 - 8 / 3 ) ", "8/(3-8/3)\n", "(8/((3-(8/3))))"])
def test_countdown_any_way_of_writing_a_right_expression_is_right(completion: str) -> None:
    assert reward(completion, [3, 3, 8, 8], 24) == 1.0
    assert reward(completion, [3, 3, 8, 8], 25) == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "3*7",  # a number left out
        "3*7+12-12",  # a number twice
        "3*7+13",  # another number
        "33",  # only the target
        "3*7+12=33",
        "<answer>3*7+12</answer>",
        "3*7+12 3*7+12",
        "12--7*3",  # the number -7 is not given
        "12+3*+7",
        "3*7+1 2",
        "",
        "__import__('os').system('x')",
        "9**9**9",
        "12/(7-7)+3",
        "(" * 100_000,
        "12 + 3×7",
    ],
)
def test_countdown_wrong_completions_get_nothing(completion: str) -> None:
    assert reward("3*7+12", [3, 7, 12], 33) == 1.0
    assert reward(completion, [3, 7, 12], 33) == 0.0


def test_countdown_rewards_and_metrics_go_by_position() -> None:
    columns: dict[str, list[object]] = {"numbers": [[1, 2, 3], [1, 2, 4]], "target": [6, 7]}
    completions = ["1+2+3", "1+2+3"]
    assert Countdown().rewards(["", ""], completions, **columns) == [1.0, 0.0]
    assert Countdown().metrics(["", ""], completions, **columns) == {"solved": [1.0, 0.0]}


def test_countdown_rewards_name_missing_and_short_columns() -> None:
    with pytest.raises(UserError, match="'target'"):
        Countdown().rewards([""], ["1"], numbers=[[1]])
    with pytest.raises(UserError, match="2 values; give 1"):
        Countdown().rewards([""], ["1"], numbers=[[1], [2]], target=[1])


@given(st.lists(st.integers(1, 12), min_size=3, max_size=3), st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_solve_gives_a_right_expression_or_there_is_none(given: list[int], target: int) -> None:
    solution = solve(list(given), target)
    if solution is not None:
        assert sorted(numbers(solution)) == sorted(given)
        assert value(solution) == target
    else:
        a, b, c = given
        assert target not in {a + b + c, a * b * c, a * b + c, (a + b) * c, a + b - c, a * (b - c)}


def test_solve_knows_fractions_and_hopeless_cases() -> None:
    assert solve([3, 3, 8, 8], 24) == "8/(3-8/3)"
    assert solve([1, 1, 1], 100) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 5}, "count is 5"),
        ({"count": 2}, "count is 2"),
        ({"max_number": 0}, "max_number is 0"),
        ({"max_target": 0}, "max_target is 0"),
    ],
)
def test_countdown_refuses_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Countdown(**options)  # type: ignore[arg-type]


def test_countdown_refuses_unknown_split_and_settings_without_puzzles() -> None:
    with pytest.raises(UserError, match="'valid'; choose one of train, test"):
        Countdown().examples("valid", 1, 0)
    with pytest.raises(UserError, match=r"raise task\.max_number or task\.max_target"):
        Countdown(max_number=1, max_target=1).examples("test", 1, 0)


def test_countdown_well_formed_is_an_expression_with_a_value() -> None:
    task = Countdown()
    assert task.well_formed("(3+7)*12")
    assert [text for text in ("", "3+", "3/0", "3=3", "(3") if task.well_formed(text)] == []
