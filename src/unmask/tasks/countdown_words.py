"""Countdown in words, as published evaluations pose it: reasoning is free, the expression stands in a box."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from unmask.data.example import Example
from unmask.data.readers.word_problems import build_prompt, build_solution, check_scoring
from unmask.tasks.base import Task, column
from unmask.tasks.countdown import Countdown, is_solved
from unmask.validation import setting
from unmask.verifiers.answers import LONGEST_ANSWER, before_end, final_answer
from unmask.verifiers.expressions import is_expression, plain_signs
from unmask.verifiers.published import d1

_INSTRUCTION = (
    "Reach the target with the given numbers: write an arithmetic expression that uses each of them exactly once, "
    "with + - * / and parentheses, and no equals sign."
)
_EMPHASIS = re.compile(r"`|\*\*(?=\s*$)|(?<![^\s])\*\*")


@dataclass(frozen=True, kw_only=True)
class CountdownWords(Task):
    """Countdown puzzles in words, for models with a tokenizer: "Numbers: [3, 7, 12]", "Target: 57"."""

    name: ClassVar[str] = "countdown-words"
    max_new_tokens: ClassVar[int] = 256

    count: int = setting(3, "numbers in a puzzle, 3 or 4")
    max_number: int = setting(100, "largest number")
    max_target: int = setting(100, "largest target")
    data: str | None = setting(
        None, 'file of lines {"input": "30,100,93", "output": "23"}: the test split, not trained on', names_data=True
    )
    scoring: str = setting("corrected", "corrected, or d1: the published scorer and the published training reward")

    def __post_init__(self) -> None:
        check_scoring(self.scoring)
        _ = self._puzzles  # refuses what Countdown refuses

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """The puzzles of Countdown, worded. See Task.examples."""
        return [_worded(example) for example in self._puzzles.examples(split, count, seed)]

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for an expression that uses each number once and equals the target, else 0.0.

        With scoring d1 its published training reward: 1.0, 0.1 for an answer that is wrong, 0.0 without one.
        """
        if self.scoring == "corrected":
            return self._solved(completions, columns)
        return [d1.countdown_reward(*puzzle) for puzzle in _puzzles(completions, columns)]

    def well_formed(self, completion: str) -> bool:
        """Whether the answer is one expression that has a value."""
        return is_expression(expression_of(completion))

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved": the expression uses each number once and equals the target."""
        return {"solved": self._solved(completions, columns)}

    def _solved(self, completions: list[str], columns: Mapping[str, list[Any]]) -> list[float]:
        is_right = d1.countdown_correct if self.scoring == "d1" else is_solved_in_words
        return [float(is_right(*puzzle)) for puzzle in _puzzles(completions, columns)]

    @cached_property
    def _puzzles(self) -> Countdown:
        return Countdown(count=self.count, max_number=self.max_number, max_target=self.max_target, data=self.data)


def is_solved_in_words(completion: str, given: list[int], target: int) -> bool:
    """Whether a completion's answer uses each given number once and equals the target exactly."""
    return is_solved(expression_of(completion), given, target)


def expression_of(completion: str) -> str:
    """The expression that a completion gives as its answer, in plain signs; of an equation, its first expression.

    Without <answer> tags or a box, the whole completion is the answer.

        expression_of(r"so \\boxed{3 \\times (7+12) = 57}")  # "3 * (7+12)"
    """
    answer = final_answer(completion, ("answer", "boxed"))
    text = before_end(completion) if answer is None else answer
    if len(text) > LONGEST_ANSWER:
        return ""
    text = plain_signs(_EMPHASIS.sub("", text)).strip().removesuffix(".")
    sides = [" ".join(side.split()) for side in text.split("=")]
    expressions = [side for side in sides if is_expression(side) and not side.isdigit()]
    return (expressions or sides)[0]


def _puzzles(completions: list[str], columns: Mapping[str, list[Any]]) -> zip[tuple[str, list[int], int]]:
    numbers, targets = column(columns, "numbers", completions), column(columns, "target", completions)
    return zip(completions, numbers, targets, strict=True)


def _worded(example: Example) -> Example:
    numbers, target = example.columns["numbers"], example.columns["target"]
    return Example(
        prompt=build_prompt(_INSTRUCTION, f"Numbers: {numbers}\nTarget: {target}"),
        solution=build_solution(f"{example.solution} = {target}", example.solution),
        columns=example.columns,
    )
