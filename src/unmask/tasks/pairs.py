"""The user's preference data: for each prompt, a completion that was chosen and one that was rejected."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from unmask.errors import UserError
from unmask.tasks.base import Example, check_range, check_split
from unmask.tasks.tables import Row
from unmask.tasks.user_data import UserData, cell, completion_of, conversation, prompt_of


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Rows {"prompt", "chosen", "rejected"}; without a prompt, chosen and rejected are conversations that share it."""

    name: ClassVar[str] = "pairs"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    vocabulary: ClassVar[tuple[str, ...]] = ()  # prose: for models that bring a tokenizer
    verifies: ClassVar[bool] = False

    data: str | None = None  # training pairs: a .jsonl, .json, .csv or .parquet file, or org/name on the Hub
    test_data: str | None = None  # held-out pairs, likewise; unset: a tenth of the data, chosen by prompt
    hub_config: str | None = None  # configuration of the Hub data set, where it has several
    hub_split: str = "train"  # split of the Hub data set that data names
    hub_test_split: str = "test"  # split of the Hub data set that test_data names
    prompt_column: str = "prompt"  # text, or a list of messages
    chosen_column: str = "chosen"  # text, or messages that end with the assistant's
    rejected_column: str = "rejected"  # likewise
    max_new_tokens: int = 256  # completion length in tokens, in which every completion must fit

    def __post_init__(self) -> None:
        check_range("max_new_tokens", self.max_new_tokens, 1, 1_000_000)

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """The first rows of a split. See Task.examples."""
        check_split(self, split)
        return self._rows.examples(split, count)

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Raises UserError: pairs say nothing about other completions."""
        raise UserError("task pairs knows the given completions alone: train on them with --method vrpo")

    def well_formed(self, completion: str) -> bool:
        """Tell whether a completion says anything."""
        return bool(completion.strip())

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """Give nothing: pairs say nothing about other completions."""
        return {}

    @cached_property
    def _rows(self) -> UserData:
        return UserData(
            data=self.data,
            test_data=self.test_data,
            hub_config=self.hub_config,
            hub_split=self.hub_split,
            hub_test_split=self.hub_test_split,
            read=self._read,
        )

    def _read(self, row: Row) -> Example:
        chosen, rejected = cell(row, self.chosen_column), cell(row, self.rejected_column)
        shared = self._shared(chosen, rejected)
        prompt, messages = prompt_of(shared or cell(row, self.prompt_column), self.prompt_column)
        if shared:
            chosen, rejected = chosen[-1:], rejected[-1:]
        given = completion_of(chosen, self.chosen_column), completion_of(rejected, self.rejected_column)
        if given[0] == given[1]:
            raise UserError(f"{self.chosen_column} and {self.rejected_column} are the same; remove the row")
        return Example(prompt=prompt, solution=given[0], columns={}, messages=messages, given=given)

    def _shared(self, chosen: Any, rejected: Any) -> list[Any]:
        """The messages before the last of two whole conversations, which must agree; none where there is one each."""
        if not isinstance(chosen, list) or not isinstance(rejected, list) or max(len(chosen), len(rejected)) < 2:
            return []
        before = conversation(chosen, self.chosen_column)[:-1]
        if before != conversation(rejected, self.rejected_column)[:-1]:
            raise UserError(
                f"{self.chosen_column} and {self.rejected_column} differ before their last message; mend it"
            )
        return list(before)
