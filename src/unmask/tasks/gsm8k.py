"""GSM8K (arXiv 2110.14168): grade-school word problems whose answer is a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from unmask.data.example import Example
from unmask.data.readers.word_problems import ProblemFiles, build_solution, check_scoring
from unmask.tasks.base import column
from unmask.tasks.sources import FileTask
from unmask.validation import setting
from unmask.verifiers.answers import DECLARED, final_answer
from unmask.verifiers.published import d1
from unmask.verifiers.quantities import answers_number, quantity, reference_number

_INSTRUCTION = "Solve the math problem."
_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True)
class GSM8K(FileTask):
    """GSM8K problems from JSON lines {"question": "...", "answer": "steps #### 42"}."""

    name: ClassVar[str] = "gsm8k"
    max_new_tokens: ClassVar[int] = 256

    scoring: str = setting(
        "corrected", "corrected, or d1: the published scorer and the published sum of training rewards"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scoring(self.scoring)

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for the right number, else 0.0; with scoring d1, the sum of its five published rewards."""
        if self.scoring == "corrected":
            return self._solved(completions, columns)
        answers = [str(answer).split("####")[-1].strip() for answer in column(columns, "answer", completions)]
        scored = zip(completions, answers, strict=True)
        return [sum(d1.gsm8k_rewards(completion, answer).values()) for completion, answer in scored]

    def well_formed(self, completion: str) -> bool:
        """Whether a completion declares a number as its answer."""
        answer = final_answer(completion, DECLARED)
        return answer is not None and quantity(answer) is not None

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved": the answer is the right number."""
        return {"solved": self._solved(completions, columns)}

    def _solved(self, completions: list[str], columns: Mapping[str, list[Any]]) -> list[float]:
        answers = map(str, column(columns, "answer", completions))
        pairs = zip(completions, answers, strict=True)
        if self.scoring == "d1":
            return [float(d1.gsm8k_correct(text, d1.gsm8k_reference(answer))) for text, answer in pairs]
        return [float(answers_number(text, reference_number(answer))) for text, answer in pairs]

    @cached_property
    def _files(self) -> ProblemFiles:
        return ProblemFiles(
            task=self.name,
            instruction=_INSTRUCTION,
            names=("question", "answer"),
            read=_read,
            data=self.data,
            train_data=self.train_data,
            few_shot=self.few_shot,
        )


def _read(row: Mapping[str, str]) -> Example:
    reference_number(row["answer"])
    steps, _, number = row["answer"].rpartition("####")
    solution = build_solution(_CALCULATOR_NOTE.sub("", steps).strip(), number.strip())
    return Example(prompt=row["question"].strip(), solution=solution, columns={"answer": number.strip()})
