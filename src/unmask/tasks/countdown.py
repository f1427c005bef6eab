"""Countdown: reach a target with given numbers, each used once, by + - * / and parentheses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from random import Random
from typing import Any, ClassVar

from unmask.data.example import Example, check_split, in_split
from unmask.data.readers.files import read_jsonl
from unmask.errors import UserError
from unmask.tasks.base import Task, column, first_accepted
from unmask.validation import check_range, setting
from unmask.verifiers.expressions import (
    OPERATIONS,
    Expression,
    InvalidExpression,
    evaluate,
    is_expression,
    numbers,
    random_expression,
    render,
    value,
)

SYMBOLS = "".join(OPERATIONS)


@dataclass(frozen=True, kw_only=True)
class Countdown(Task):
    """Countdown puzzles: the prompt "3 7 12=57:" asks for an expression such as "3*(7+12)"."""

    name: ClassVar[str] = "countdown"
    # The longest expression of four numbers has 11 tokens, but runs decode in 16 steps.
    max_new_tokens: ClassVar[int] = 16

    count: int = setting(3, "numbers in a puzzle, 3 or 4")
    max_number: int = setting(20, "largest number")
    max_target: int = setting(100, "largest target")
    data: str | None = setting(
        None, 'file of lines {"input": "30,100,93", "output": "23"}: the test split, not trained on', names_data=True
    )

    def __post_init__(self) -> None:
        check_range("task.count", self.count, 3, 4)
        # Every integer up to the larger one is a token.
        check_range("task.max_number", self.max_number, 1, 9999)
        check_range("task.max_target", self.max_target, 1, 9999)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """One token for every integer up to the largest number or target, and the signs."""
        largest = max(self.max_number, self.max_target)
        return (*(str(number) for number in range(largest + 1)), *SYMBOLS, *"()=: ")

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """Random numbers, and the value of a random expression of them as target. See Task.examples."""
        check_split(self, split)
        if split == "test" and self.data is not None:
            return self._published[:count]
        rng = Random(f"{self.name}-{split}-{seed}")
        mend = "raise task.max_number or task.max_target"
        return [first_accepted(lambda: self._draw(rng, split), self, split, mend) for _ in range(count)]

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for one expression that uses each number once and equals the target exactly, else 0.0."""
        puzzles = zip(
            completions,
            column(columns, "numbers", completions),
            column(columns, "target", completions),
            strict=True,
        )
        return [float(is_solved(*puzzle)) for puzzle in puzzles]

    def well_formed(self, completion: str) -> bool:
        """Whether a completion is one expression that has a value."""
        return is_expression(completion)

    def _draw(self, rng: Random, split: str) -> Example | None:
        drawn = [rng.randint(1, self.max_number) for _ in range(self.count)]
        expression = random_expression(rng, drawn, SYMBOLS)
        try:
            target = evaluate(expression)
        except InvalidExpression:
            return None
        if target.denominator > 1 or not 1 <= target <= self.max_target:
            return None
        # In the order drawn, the numbers would read as they stand in the solution.
        rng.shuffle(drawn)
        example = _example(drawn, int(target), render(expression))
        key = _key(example)
        return example if in_split(key, split) and key not in self._published_keys else None

    @cached_property
    def _published(self) -> list[Example]:
        if self.data is None:
            return []
        return read_jsonl(self.data, ("input", "output"), self._read)

    @cached_property
    def _published_keys(self) -> frozenset[str]:
        return frozenset(map(_key, self._published))

    def _read(self, row: Mapping[str, str]) -> Example:
        given, target = _integers("input", row["input"]), _integers("output", row["output"])
        if len(given) != self.count or len(target) != 1:
            raise UserError(f"{len(given)} numbers and {len(target)} targets; write {self.count} and 1")
        for number in given:
            check_range("a number of input", number, 1, self.max_number)
        check_range("output", target[0], 1, self.max_target)
        solution = solve(list(given), target[0])
        if solution is None:
            raise UserError(f"no expression of {row['input']} is {row['output']}; remove the line")
        return _example(given, target[0], solution)


def is_solved(completion: str, given: list[int], target: int) -> bool:
    """Whether a text is one expression that uses exactly the given numbers and has the target as its value.

    is_solved("3*(7+12)", [3, 7, 12], 57)  # True
    """
    try:
        return sorted(numbers(completion)) == sorted(given) and value(completion) == target
    except InvalidExpression:
        return False


def solve(pool: list[Expression], target: int) -> str | None:
    """An expression that uses each part of `pool` once and equals the target, by exhaustive search; None if none does.

    solve([3, 7, 12], 57)  # "3*(7+12)", or another that is right
    """
    if len(pool) == 1:
        try:
            return render(pool[0]) if evaluate(pool[0]) == target else None
        except InvalidExpression:
            return None
    for first, second in permutations(range(len(pool)), 2):
        rest = [part for place, part in enumerate(pool) if place not in (first, second)]
        for symbol in SYMBOLS:
            solution = solve([*rest, (symbol, pool[first], pool[second])], target)
            if solution is not None:
                return solution
    return None


def _example(given: list[int], target: int, solution: str) -> Example:
    prompt = f"{' '.join(map(str, given))}={target}:"
    return Example(prompt=prompt, solution=solution, columns={"numbers": given, "target": target})


def _key(example: Example) -> str:
    """Name a puzzle whatever the order of its numbers."""
    given, target = example.prompt.split("=")
    return f"{sorted(given.split())}={target}"


def _integers(name: str, text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]{1,9}(, ?[0-9]{1,9})*", text):
        raise UserError(f"{name} is {text[:40]!r}; write integers with commas between")
    return [int(number) for number in text.split(",")]
