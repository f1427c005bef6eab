"""An example (one prompt and what is known of it), and which split it belongs to. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, Protocol

from unmask.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt, one valid completion of it, and the columns that the reward reads.

    `solution` is for supervised training (empty where none is known); other completions may be right too.
    `messages` is the prompt as a conversation, where the data give it as one; `prompt` is then its text.
    `ranked`: completions to learn from in place of sampled ones, the best first.
    """

    prompt: str
    solution: str
    columns: Mapping[str, object]
    messages: tuple[Mapping[str, str], ...] = ()
    ranked: tuple[str, ...] = ()


def prompt_key(example: Example) -> str:
    """What makes two prompts the same: their words."""
    return " ".join(example.prompt.split())


class HasSplits(Protocol):
    """As much of a task as names its splits."""

    name: ClassVar[str]

    @property
    def splits(self) -> tuple[str, ...]: ...


def check_split(task: HasSplits, split: str) -> None:
    """Raise UserError if the task has no such split."""
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}; choose one of {', '.join(task.splits)}")


def digest(text: str) -> int:
    """Hash a text to an integer that is the same in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def in_split(puzzle: str, split: str) -> bool:
    """Tell whether a puzzle belongs to "train" (nine tenths of all puzzles) or to any other split."""
    return (digest(puzzle) % 10 > 0) == (split == "train")
