"""MATH-500 (arXiv 2103.03874, 2305.20050): competition problems whose answer is LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from unmask.data.example import Example
from unmask.data.readers.word_problems import ProblemFiles, build_solution, check_scoring
from unmask.tasks.base import column
from unmask.tasks.sources import FileTask
from unmask.validation import setting
from unmask.verifiers.formulas import declared_formula
from unmask.verifiers.latex import same_latex
from unmask.verifiers.published import d1_math

_INSTRUCTION = "Solve the math problem; write the answer in LaTeX and as simple as it can be."


@dataclass(frozen=True, kw_only=True)
class Math500(FileTask):
    """MATH-500 problems from JSON lines {"problem": "...", "answer": "\\\\frac{1}{2}"}; "solution" is read if there."""

    name: ClassVar[str] = "math500"
    max_new_tokens: ClassVar[int] = 512

    scoring: str = setting(
        "corrected", "corrected, or d1: the published scorer and the published sum of training rewards"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scoring(self.scoring)

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for an answer equivalent to the reference, else 0.0; with scoring d1, the sum of its two rewards."""
        if self.scoring == "corrected":
            return self._solved(completions, columns)
        pairs = zip(completions, column(columns, "answer", completions), strict=True)
        return [sum(d1_math.math_rewards(*pair).values()) for pair in pairs]

    def well_formed(self, completion: str) -> bool:
        """Whether a completion declares an answer."""
        return declared_formula(completion) is not None

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved": the answer is mathematically equivalent to the reference."""
        return {"solved": self._solved(completions, columns)}

    def _solved(self, completions: list[str], columns: Mapping[str, list[Any]]) -> list[float]:
        references = column(columns, "answer", completions)
        if self.scoring == "d1":
            return [float(d1_math.math_correct(*pair)) for pair in zip(completions, references, strict=True)]
        answers = [declared_formula(completion) or "" for completion in completions]
        stated = [declared_formula(reference) or reference for reference in references]
        return list(map(float, same_latex(list(zip(stated, answers, strict=True)))))

    @cached_property
    def _files(self) -> ProblemFiles:
        return ProblemFiles(
            task=self.name,
            instruction=_INSTRUCTION,
            names=("problem", "answer"),
            read=_read,
            data=self.data,
            train_data=self.train_data,
            few_shot=self.few_shot,
        )


def _read(row: Mapping[str, str]) -> Example:
    answer = row["answer"].strip()
    solution = build_solution(row.get("solution", "").strip(), answer)
    return Example(prompt=row["problem"].strip(), solution=solution, columns={"answer": answer})
