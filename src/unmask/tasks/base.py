"""What a task is: examples to train on, and a reward that checks a completion by the task's own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from unmask.data.example import Example
from unmask.errors import UserError

DRAWS_BEFORE_GIVING_UP = 10_000


class Task(Protocol):
    """A family of puzzles with a verifier."""

    name: ClassVar[str]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: "train", "test", then further held-out ones."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Tokens that spell every prompt and every solution, without special tokens.

        Empty for prose: such tasks are for models that bring a tokenizer.
        """

    @property
    def max_new_tokens(self) -> int:
        """Tokens in which every solution fits; where solutions vary in length, the end token fits too."""

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """Draw `count` examples; the first k of them are the same for every count of at least k.

        No puzzle occurs in two splits, whatever the seeds. A split that is read from a file keeps the file's
        order, ignores the seed, and gives what the file has where that is less than `count`.
        Raises UserError for an unknown split or a file that cannot be used.
        """

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Score each completion, 1.0 right and 0.0 wrong unless a published reward says otherwise (TRL's signature).

        `columns` are lists as long as `completions`. Raises UserError where a column is missing.
        """

    def well_formed(self, completion: str) -> bool:
        """Tell whether a completion has the form of an answer, right or wrong: what collapse loses first."""

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """Give each metric's value (0 to 1) per completion; "solved" is among them if the task verifies."""


def verifies(task: Task) -> bool:
    """Tell whether a task itself knows right from wrong; if not, its rewards raise UserError, its metrics are none."""
    return getattr(task, "verifies", True)


def first_accepted(draw: Callable[[], Example | None], task: Task, split: str, mend: str) -> Example:
    """Draw until an example is accepted; raise UserError where the settings leave next to none."""
    for _ in range(DRAWS_BEFORE_GIVING_UP):
        example = draw()
        if example is not None:
            return example
    raise UserError(f"{task} found no puzzle for split {split!r}; {mend}")


def column(columns: Mapping[str, list[Any]], name: str, completions: list[str]) -> list[Any]:
    """Give one column of a reward call; raise UserError if it is missing or not as long as `completions`."""
    if name not in columns:
        raise UserError(f"the reward needs the column {name!r}; add it to the data set")
    values = columns[name]
    if len(values) != len(completions):
        raise UserError(f"column {name!r} has {len(values)} values; give {len(completions)}, one per completion")
    return values
