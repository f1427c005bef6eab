"""The user's rows as examples: parsing of prompts and completions, train/test split, few-shot prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from reprlib import repr as short_repr
from typing import Any

from unmask.data.example import Example, answered, digest, in_split, joined, prompt_key
from unmask.data.readers.tables import Row, Source, read_table, shown
from unmask.errors import UserError

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class UserData:
    """Training and test rows; without test data, a tenth of the rows, chosen by a hash of the prompt, is held out.

    Of few rows at least one is.

    read: makes an example of a row; raises UserError.
    few_shot: so many training examples are shown solved in all other prompts.
    """

    data: Source | None
    test_data: Source | None
    hub_config: str | None
    hub_split: str
    hub_test_split: str
    read: Callable[[Row], Example]
    few_shot: int = 0

    def examples(self, split: str, count: int) -> list[Example]:
        """The first `count` examples of a split, in the data's order; no prompt is in both splits."""
        chosen = self._test if split == "test" else self._train
        return [with_shots(example, self._shots) for example in chosen[:count]]

    def check_named(self, split: str) -> None:
        """Raise UserError where no data is named that a split is read from; nothing is read."""
        if self.data is None and (split == "train" or self.test_data is None):
            raise _no_data()

    @cached_property
    def _rows(self) -> list[Example]:
        if self.data is None:
            raise _no_data()
        return self._read(self.data, self.hub_split)

    @cached_property
    def _test(self) -> list[Example]:
        if self.test_data is not None:
            return self._read(self.test_data, self.hub_test_split)
        return [example for example in self._rows if prompt_key(example) in self._held_out]

    @cached_property
    def _held_out(self) -> set[str]:
        """Keys of the prompts that are not trained on where there is no test data: a tenth, and of few rows one."""
        keys = {prompt_key(example) for example in self._rows}
        if len(keys) == 1:
            raise UserError(
                f"{self._named} has one prompt, and none would be held out: add rows, or give task.test_data (in "
                "Python eval_dataset)"
            )
        tenth = {key for key in keys if in_split(key, "test")} or {min(keys, key=digest)}
        return tenth if tenth < keys else tenth - {max(keys, key=digest)}

    @cached_property
    def _untested(self) -> list[Example]:
        tested = self._held_out if self.test_data is None else set(map(prompt_key, self._test))
        rows = [example for example in self._rows if prompt_key(example) not in tested]
        if len(rows) <= self.few_shot:
            shown = f", and task.few_shot is {self.few_shot}: add rows or lower it"
            mend = shown if self.few_shot else ": add rows, or test on others (task.test_data)"
            raise UserError(f"{self._named} leaves {len(rows)} training rows besides the test's prompts{mend}")
        return rows

    @cached_property
    def _train(self) -> list[Example]:
        shown = set(map(prompt_key, self._shots))
        return [example for example in self._untested if prompt_key(example) not in shown]

    @cached_property
    def _shots(self) -> list[Example]:
        shots = [answered(shot) for shot in self._untested[: self.few_shot]] if self.few_shot else []
        if not all(shot.solution for shot in shots):
            raise UserError(
                f"task.few_shot is {self.few_shot} and rows to show have no completion; give task.completion_column"
            )
        return shots

    @property
    def _named(self) -> str:
        return "the data" if self.data is None else shown(self.data)

    def _read(self, source: Source, hub_split: str) -> list[Example]:
        examples = []
        for place, row in read_table(source, self.hub_config, hub_split):
            try:
                examples.append(replace(self.read(row), place=f"{shown(source)}, {place}"))
            except UserError as error:
                raise UserError(f"{shown(source)}, {place}: {error}") from None
        return examples


def _no_data() -> UserError:
    return UserError(
        "the task reads the user's data; give task.data (--task.data FILE), a .jsonl, .json, .csv or .parquet file"
    )


def with_shots(example: Example, shots: list[Example]) -> Example:
    """The example with solved ones before it: as earlier turns of a conversation, or as text above the prompt."""
    if not shots:
        return example
    solved = "".join(f"{shot.prompt.rstrip()}\n{shot.solution.strip()}\n\n" for shot in shots)
    if not example.messages:
        return replace(example, prompt=solved + example.prompt)
    turns = tuple(
        turn
        for shot in shots
        for turn in (*_without_system(shot.messages), {"role": "assistant", "content": shot.solution})
    )
    system = len(example.messages) - len(_without_system(example.messages))
    return replace(example, messages=(*example.messages[:system], *turns, *example.messages[system:]))


def _without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[1:] if messages and messages[0]["role"] == "system" else messages


# What a column may hold ----------------------------------------------------------------------------------------------


def cell(row: Row, task: Any, setting: str) -> Any:
    """The value of the column that a setting of the task names. Raises UserError where the row has no such column."""
    column = getattr(task, setting)
    if column not in row:
        raise UserError(
            f"there is no column {column!r}; set task.{setting} to one of {', '.join(row)} "
            f"(in Python, {type(task).__name__}({setting}=...))"
        )
    return row[column]


def text(value: Any, column: str) -> str:
    """A cell that must be non-empty text. Raises UserError."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{column} is {short_repr(value)}; write text that is not empty")
    return value


def conversation(value: Any, column: str) -> tuple[Message, ...]:
    """Messages of a cell [{"role": ..., "content": ...}, ...]; other keys are dropped. Raises UserError."""
    if not isinstance(value, list) or not value:
        raise UserError(f'{column} is {short_repr(value)}; write text, or a list of {{"role": ..., "content": ...}}')
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f"{column} holds {short_repr(message)}; give each message role and content as text")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def prompt_of(value: Any, column: str) -> tuple[str, tuple[Message, ...]]:
    """A prompt cell's (text, messages); no messages where it is plain text. Raises UserError."""
    if not isinstance(value, list):
        return text(value, column), ()
    messages = conversation(value, column)
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise UserError(f"{column} has no message of the user; add one")
    return joined(messages), messages


def completion_of(value: Any, column: str) -> str:
    """A completion cell's text: plain text, or one assistant message. Raises UserError."""
    if not isinstance(value, list):
        return text(value, column)
    messages = conversation(value, column)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise UserError(f"{column} has {len(messages)} messages; write one, of the assistant's")
    return text(messages[0]["content"], column)
