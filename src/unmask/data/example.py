"""Example: one prompt and what is known of it; and how prompts are dealt to splits. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import ClassVar, Protocol

from unmask.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt, one right completion of it, and the columns that the reward reads.

    solution: a right completion for supervised training, empty where none is known; others may be right too.
    messages: the prompt as a conversation, where the data give it as one; `prompt` is then its text.
    ranked: completions to learn from instead of sampled ones (preference pairs), the best first.
    place: where it stands in the user's data ("train.jsonl, line 3"), for error messages.
    """

    prompt: str
    solution: str
    columns: Mapping[str, object]
    messages: tuple[Mapping[str, str], ...] = ()
    ranked: tuple[str, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def named(self) -> str:
        """Its place, or where it has none its prompt: how error messages call it."""
        return self.place or f"prompt {self.prompt[:40]!r}"


def answered(example: Example) -> Example:
    """The example with a completion to learn from: its own, else the last message of its prompt if the assistant's is.

    That message then no longer stands in the prompt.
    """
    if example.solution or not example.messages or example.messages[-1]["role"] != "assistant":
        return example
    *asked, last = example.messages
    return replace(example, prompt=joined(asked), messages=tuple(asked), solution=last["content"])


def joined(messages: Sequence[Mapping[str, str]]) -> str:
    """The contents of messages as one text."""
    return "\n\n".join(message["content"] for message in messages)


def prompt_key(example: Example) -> str:
    """The prompt with white space normalised: equal keys mean equal prompts, however they are answered or begun."""
    last = example.messages[-1]["role"] if example.messages else "user"
    asked = joined(example.messages[:-1]) if last == "assistant" else example.prompt
    return " ".join(asked.split())


class HasSplits(Protocol):
    """The part of a Task that `check_split` reads."""

    name: ClassVar[str]

    @property
    def splits(self) -> tuple[str, ...]: ...


def check_split(task: HasSplits, split: str) -> None:
    """Raise UserError if the task has no such split."""
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}; choose one of {', '.join(task.splits)}")


def digest(text: str) -> int:
    """A 64-bit hash of a text, the same in every process and on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def in_split(puzzle: str, split: str) -> bool:
    """Whether a puzzle belongs to the split: by its hash nine tenths are "train", the rest every other split."""
    return (digest(puzzle) % 10 > 0) == (split == "train")
