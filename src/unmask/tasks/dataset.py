"""The user's own prompts, with reference answers to compare with or without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import Any, ClassVar

from unmask.data.example import Example
from unmask.data.readers.tables import Row
from unmask.data.readers.user_rows import cell, completion_of, prompt_of
from unmask.errors import UserError
from unmask.tasks.base import column
from unmask.tasks.sources import RowsTask
from unmask.validation import check_range, setting, where
from unmask.verifiers.answers import DECLARED, before_end, final_answer
from unmask.verifiers.formulas import declared_formula, stated_formula, unwrapped
from unmask.verifiers.latex import same_latex
from unmask.verifiers.quantities import answers_number, quantity, reference_number

ANSWER_KINDS = ("number", "latex", "text", "none")
_ARGUMENTS = ("self", "prompts", "completions", "completions_raw")  # of reward functions: no column can be called so


@dataclass(frozen=True, kw_only=True)
class Dataset(RowsTask):
    """Rows of a file or of a Hub data set: prompts, optionally completions and reference answers.

    All columns but prompt and completion are passed to the reward functions.
    """

    name: ClassVar[str] = "dataset"

    completion_column: str = setting(
        "completion", "a good completion, for supervised training and few_shot; may be absent"
    )
    answer_column: str = setting(
        "answer", "the right answer, read unless answer_kind is none", idle=where("answer_kind", "none")
    )
    answer_kind: str = setting("none", "number, latex, text (the same words), or none: rewards come from elsewhere")
    few_shot: int = setting(0, "training rows that every prompt shows solved")

    def __post_init__(self) -> None:
        check_range("task.few_shot", self.few_shot, 0, 64)
        super().__post_init__()
        if self.answer_kind not in ANSWER_KINDS:
            raise UserError(f"task.answer_kind is {self.answer_kind!r}; choose one of {', '.join(ANSWER_KINDS)}")

    @property
    def verifies(self) -> bool:
        """Whether there are reference answers to compare with."""
        return self.answer_kind != "none"

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for the right answer, else 0.0. Raises UserError where answer_kind is none."""
        if not self.verifies:
            raise UserError(
                "task dataset compares no answers (answer_kind is none): give --task.answer-kind number, latex "
                "or text, or in training give reward.funcs"
            )
        return self._right(completions, columns)

    def well_formed(self, completion: str) -> bool:
        """Whether a completion states a number, where answer_kind is number; else whether it holds any text."""
        if self.answer_kind != "number":
            return bool(before_end(completion).strip())
        answer = final_answer(completion, (*DECLARED, "number"))
        return answer is not None and quantity(answer) is not None

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved": the answer is right; empty where answer_kind is none."""
        return {"solved": self._right(completions, columns)} if self.verifies else {}

    def _right(self, completions: list[str], columns: Mapping[str, list[Any]]) -> list[float]:
        wanted = list(map(str, column(columns, self.answer_column, completions)))
        if self.answer_kind == "number":
            pairs = zip(completions, wanted, strict=True)
            return [float(answers_number(completion, reference_number(answer))) for completion, answer in pairs]
        if self.answer_kind == "latex":
            formulas = map(stated_formula, completions)
            references = [declared_formula(answer) or answer for answer in wanted]
            return list(map(float, same_latex(list(zip(references, formulas, strict=True)))))
        answers = [final_answer(completion) or before_end(completion) for completion in completions]
        pairs = zip(wanted, answers, strict=True)
        return [float(unwrapped(right).split() == unwrapped(answer).split()) for right, answer in pairs]

    @property
    def _shots(self) -> int:
        return self.few_shot

    def _read(self, row: Row) -> Example:
        prompt, messages = prompt_of(cell(row, self, "prompt_column"), self.prompt_column)
        completion = row.get(self.completion_column)
        if self.verifies:
            self._check_answer(cell(row, self, "answer_column"))
        others = {
            name: value for name, value in row.items() if name not in (self.prompt_column, self.completion_column)
        }
        for name in _ARGUMENTS:
            if name in others:
                raise UserError(f"a column is called {name!r}, as an argument of reward functions is; rename it")
        solution = "" if completion is None else completion_of(completion, self.completion_column)
        return Example(prompt=prompt, solution=solution, columns=others, messages=messages)

    def _check_answer(self, answer: Any) -> None:
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
            raise UserError(f"{self.answer_column} is {short_repr(answer)}; write a text or a number")
        if self.answer_kind == "number":
            reference_number(str(answer))
