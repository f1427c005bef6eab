"""Programs that must pass tests, from files like those of HumanEval (arXiv 2107.03374) and MBPP (arXiv 2108.07732)."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as short_repr
from typing import Any, ClassVar

from unmask.data.example import Example
from unmask.data.readers.word_problems import ProblemFiles, json_row
from unmask.errors import UserError
from unmask.tasks.base import column
from unmask.tasks.sources import FileTask
from unmask.validation import check_range, setting
from unmask.verifiers.programs import defined_names, parsed, preamble, program
from unmask.verifiers.sandbox import Limits, Trial, check_sandbox, run_trials

_INSTRUCTION = "Write Python 3 code that solves the problem, with the standard library alone."
_FORMAT = " Put the whole program, with its imports, into one block:\n```python\nyour program\n```"
_FORMATS = (
    "write prompt, canonical_solution, test and entry_point (as HumanEval), or text (or prompt), code and test_list "
    "(as MBPP)"
)


@dataclass(frozen=True, kw_only=True)
class Code(FileTask):
    """Programming problems from JSON lines as HumanEval or MBPP write them; each line may be of either kind.

    The reward runs a completion's program against the tests inside a sandbox (docs/code.md).
    """

    name: ClassVar[str] = "code"
    max_new_tokens: ClassVar[int] = 512

    time_limit_seconds: int = setting(3, "for a program and its tests together")
    memory_megabytes: int = setting(512, "for a program")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.time_limit_seconds", self.time_limit_seconds, 1, 600)
        check_range("task.memory_megabytes", self.memory_megabytes, 128, 2**20)

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """The first problems of a file. See Task.examples. Raises UserError where no sandbox can be made."""
        examples = super().examples(split, count, seed)
        check_sandbox()
        return examples

    def rewards(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """1.0 for a program that passes all tests within the limits, else 0.0."""
        stubs, references, names, tests = (
            column(columns, name, completions) for name in ("stub", "reference", "names", "tests")
        )
        programs = [
            program(completion, stub, taken[0])
            for completion, stub, taken in zip(completions, stubs, names, strict=True)
        ]
        trials = [
            Trial(program=text, reference=reference, names=tuple(taken), tests=checks)
            for text, reference, taken, checks in zip(programs, references, names, tests, strict=True)
            if text is not None
        ]
        limits = Limits(seconds=self.time_limit_seconds, memory_megabytes=self.memory_megabytes)
        verdicts = iter(run_trials(trials, limits))
        return [float(text is not None and next(verdicts).status == "passed") for text in programs]

    def well_formed(self, completion: str) -> bool:
        """Whether a completion's program parses as Python, as a whole or as the body of a function."""
        return program(completion, "def solution():\n", "solution") is not None

    def metrics(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """ "solved" (all tests pass) and "parses" (see well_formed)."""
        return {
            "solved": self.rewards(prompts, completions, **columns),
            "parses": [float(self.well_formed(completion)) for completion in completions],
        }

    @cached_property
    def _files(self) -> ProblemFiles:
        return ProblemFiles(
            task=self.name,
            instruction=_INSTRUCTION,
            names=("prompt", "canonical_solution", "test", "entry_point"),
            read=_read,
            data=self.data,
            train_data=self.train_data,
            few_shot=self.few_shot,
            ask=_ask,
            row=lambda line, _: json_row(line, ()),
        )


def _ask(instruction: str, question: str, shots: Sequence[tuple[str, str]]) -> str:
    solved = "".join(f"{shown}\n{solution}\n\n" for shown, solution in shots)
    return f"{instruction}{_FORMAT}\n\n{solved}{question}\n"


def _read(row: Mapping[str, Any]) -> Example:
    if "entry_point" in row:
        return _read_function(row)
    if "test_list" in row:
        return _read_asserts(row)
    raise UserError(f"keys are missing; {_FORMATS}")


def _read_function(row: Mapping[str, Any]) -> Example:
    """HumanEval's kind: a function to complete, and a function `check` that calls it."""
    stub, solution, test, name = (_text(row, key) for key in ("prompt", "canonical_solution", "test", "entry_point"))
    if preamble(stub, name) is None:
        raise UserError(f"prompt does not define entry_point {short_repr(name)}; end it with the head of that function")
    return _example(
        question=f"Complete this function:\n```python\n{stub.rstrip()}\n```",
        stub=stub,
        reference=stub + solution,
        names=[name],
        tests=f"{test}\n\ncheck({name})\n",
    )


def _read_asserts(row: Mapping[str, Any]) -> Example:
    """MBPP's kind: a task in words and asserts; what these take from the program is what the reference defines."""
    text = _text(row, "text" if "text" in row else "prompt")
    reference, asserts = _text(row, "code"), _texts(row, "test_list")
    tests = "\n".join([*_texts(row, "test_imports"), str(row.get("test_setup_code") or ""), *asserts])
    used = {node.id for node in ast.walk(_tree("test_list", tests)) if isinstance(node, ast.Name)}
    names = sorted(used & defined_names(_tree("code", reference)))
    if not names:
        raise UserError("test_list uses nothing that code defines; call its function in the asserts")
    shown = "\n".join(asserts)
    return _example(
        question=f"{text.strip()}\nThe program must pass these tests:\n```python\n{shown}\n```",
        stub="",
        reference=reference,
        names=names,
        tests=tests,
    )


def _example(question: str, stub: str, reference: str, names: list[str], tests: str) -> Example:
    _tree("reference solution", reference)
    _tree("test", tests)
    columns = {"stub": stub, "reference": reference, "names": names, "tests": tests}
    return Example(prompt=question, solution=f"```python\n{reference.strip()}\n```", columns=columns)


def _tree(key: str, text: str) -> ast.Module:
    tree = parsed(text)
    if tree is None:
        raise UserError(f"{key} is no Python program: {short_repr(text)}; mend or remove the line")
    return tree


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key} is {short_repr(value)}; write it as text in quotes, or {_FORMATS}")
    return value.replace("\r\n", "\n")


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    values = row.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{key} is {short_repr(values)}; write a list of texts in quotes")
    return values
