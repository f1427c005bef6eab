"""Arithmetic: work out an expression one operation at a time and write every step."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from unmask.data.example import Example, check_split, in_split
from unmask.tasks.base import Task, column, first_accepted
from unmask.validation import check_range, setting
from unmask.verifiers.expressions import (
    Expression,
    InvalidExpression,
    evaluate,
    is_expression,
    leaves,
    parse,
    random_expression,
    render,
    value,
)

SYMBOLS = "+-*"
LEAST, GREATEST = -99, 999


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Task):
    """Arithmetic with steps: the prompt "(3+5)*4-7=" asks for "8*4-7=32-7=25".

    Intermediate values lie between -99 and 999. An expression whose steps and end token exceed `max_new_tokens` is not
    drawn.
    """

    name: ClassVar[str] = "arithmetic"

    terms: int = setting(4, "numbers in a sum, 2 to 5")
    max_number: int = setting(9, "largest number in a prompt, 1 to 99")

    def __post_init__(self) -> None:
        check_range("task.terms", self.terms, 2, 5)
        check_range("task.max_number", self.max_number, 1, 99)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Single characters: digits, signs and parentheses."""
        return tuple("0123456789" + SYMBOLS + "()=")

    @property
    def max_new_tokens(self) -> int:
        """Eight tokens per operation: 24 for four terms."""
        return 8 * (self.terms - 1)

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """Random expressions with their worked-out steps. See Task.examples."""
        check_split(self, split)
        rng = Random(f"{self.name}-{split}-{seed}")
        mend = "choose another task.terms or task.max_number"
        return [first_accepted(lambda: self._draw(rng, split), self, split, mend) for _ in range(count)]

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 where the text after the last "=" is the answer, else 0.0; the steps do not count."""
        answers = column(columns, "answer", completions)
        return [
            float(completion.rpartition("=")[2].strip() == str(answer))
            for completion, answer in zip(completions, answers, strict=True)
        ]

    def well_formed(self, completion: str) -> bool:
        """Whether a completion is a chain of expressions that have values, joined by "="."""
        return all(map(is_expression, completion.split("=")))

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved", which is the reward, and "chain_valid", the fraction of steps whose value is the answer."""
        answers = column(columns, "answer", completions)
        return {
            "solved": self.rewards(prompts, completions, **columns),
            "chain_valid": list(map(_valid_fraction, completions, answers)),
        }

    def _draw(self, rng: Random, split: str) -> Example | None:
        drawn = [rng.randint(1, self.max_number) for _ in range(self.terms)]
        problem = render(random_expression(rng, drawn, SYMBOLS))
        prompt = f"{problem}="
        if not in_split(prompt, split):
            return None
        # Printing drops parentheses: 1+(2+3) reads 1+2+3, so the steps must follow the text, not the tree.
        chain = steps(parse(problem))
        if any(not LEAST <= number <= GREATEST for step in chain for number in leaves(step)):
            return None
        solution = "=".join(map(render, chain))
        if len(solution) >= self.max_new_tokens:
            return None
        return Example(prompt=prompt, solution=solution, columns={"answer": chain[-1]})


def steps(expression: Expression) -> list[Expression]:
    """The expressions after each operation, the leftmost one whose two sides are numbers first.

    steps(parse("(3+5)*4-7"))  # the trees of "8*4-7", "32-7" and 25
    """
    chain = []
    while isinstance(expression, tuple):
        expression = _step(expression)
        chain.append(expression)
    return chain


def _step(expression: tuple[str, Expression, Expression]) -> Expression:
    symbol, left, right = expression
    if isinstance(left, tuple):
        return symbol, _step(left), right
    if isinstance(right, tuple):
        return symbol, left, _step(right)
    return int(evaluate(expression))


def _valid_fraction(completion: str, answer: int) -> float:
    parts = completion.split("=")
    return sum(_has_value(part, answer) for part in parts) / len(parts)


def _has_value(text: str, answer: int) -> bool:
    try:
        return value(text) == answer
    except InvalidExpression:
        return False
