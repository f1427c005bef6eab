"""The user's preference data: for each prompt, a chosen and a rejected completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unmask.data.example import Example
from unmask.data.readers.tables import Row
from unmask.data.readers.user_rows import cell, completion_of, conversation, prompt_of
from unmask.errors import UserError
from unmask.tasks.sources import RowsTask
from unmask.validation import setting


@dataclass(frozen=True, kw_only=True)
class Pairs(RowsTask):
    """Preference rows {"prompt", "chosen", "rejected"}, for VRPO; the completions of an example are its `ranked` ones.

    Without a prompt column, chosen and rejected are conversations that share all messages but the last.
    """

    name: ClassVar[str] = "pairs"
    verifies: ClassVar[bool] = False  # of a completion that is in no pair, nothing is known
    gives_pairs: ClassVar[bool] = True

    chosen_column: str = setting("chosen", "text, or messages that end with the assistant's")
    rejected_column: str = setting("rejected", "likewise")

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Raises UserError: nothing is known of completions other than those of the pairs."""
        raise UserError("task pairs knows the given completions alone: train on them with method vrpo")

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """Empty: nothing is known of completions other than those of the pairs."""
        return {}

    def _read(self, row: Row) -> Example:
        chosen = cell(row, self, "chosen_column")
        rejected = cell(row, self, "rejected_column")
        shared = self._shared(chosen, rejected)
        prompt, messages = prompt_of(shared or cell(row, self, "prompt_column"), self.prompt_column)
        if shared:
            chosen, rejected = chosen[-1:], rejected[-1:]
        pair = completion_of(chosen, self.chosen_column), completion_of(rejected, self.rejected_column)
        if pair[0] == pair[1]:
            raise UserError(f"{self.chosen_column} and {self.rejected_column} are the same; remove the row")
        return Example(prompt=prompt, solution=pair[0], columns={}, messages=messages, ranked=pair)

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
