"""Word problems from the user's files, and their prompts in the <reasoning>/<answer>/\\boxed format of d1."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as short_repr
from typing import Any

from unmask.data.example import Example, prompt_key
from unmask.data.readers.files import each_line, read_lines
from unmask.errors import UserError

SCORINGS = ("corrected", "d1")
_FORMAT = (
    " Think step by step between <reasoning> and </reasoning>. Then write nothing but the final answer, inside "
    "\\boxed{}, between <answer> and </answer>:\n<reasoning>\nyour steps\n</reasoning>\n<answer>\n"
    "\\boxed{your answer}\n</answer>"
)


def check_scoring(scoring: str) -> None:
    """Raise UserError unless `scoring` is "corrected" or "d1"."""
    if scoring not in SCORINGS:
        raise UserError(f"task.scoring is {scoring!r}; choose one of {', '.join(SCORINGS)}")


def build_prompt(instruction: str, question: str, shots: Sequence[tuple[str, str]] = ()) -> str:
    """A prompt: instruction, answer format, solved questions (few-shot), then the question to solve."""
    solved = "".join(f"Question: {shown}\n{solution}\n\n" for shown, solution in shots)
    return f"{instruction}{_FORMAT}\n\n{solved}Question: {question}\n"


def build_solution(reasoning: str, answer: str) -> str:
    """A completion in the format that `build_prompt` asks for."""
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n\\boxed{{{answer}}}\n</answer>"


def text_row(line: str, names: tuple[str, ...]) -> dict[str, str]:
    """The text values of a JSON object in a line. Raises UserError where one of `names` is missing or is no text."""
    values = json_row(line, names)
    for name in names:
        if not isinstance(values[name], str) or not values[name].strip():
            raise UserError(f"{name} is {short_repr(values[name])}; write it as text in quotes")
    return {name: value for name, value in values.items() if isinstance(value, str)}


def json_row(line: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object in a line. Raises UserError where one of `names` is missing."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{short_repr(line)} is not JSON; mend or remove the line") from None
    if not isinstance(values, dict) or not set(names) <= set(values):
        raise UserError(f"keys are missing; write an object with {', '.join(names)}")
    return values


@dataclass(frozen=True, kw_only=True)
class ProblemFiles:
    """Problems of a test file and a training file, the first training problems optionally shown solved (few-shot).

    read: makes an example of a row, with question and solution as they stand in a prompt; raises UserError.
    ask: makes a prompt of instruction, question and solved (question, solution) pairs.
    row: parses a line, given the names of its keys.
    """

    task: str
    instruction: str
    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]
    data: str | None
    train_data: str | None
    few_shot: int
    ask: Callable[[str, str, Sequence[tuple[str, str]]], str] = build_prompt
    row: Callable[[str, tuple[str, ...]], Mapping[str, Any]] = text_row

    def examples(self, split: str, count: int) -> list[Example]:
        """The first `count` of a split, in the file's order; problems tested or shown solved are not trained on."""
        chosen = self._test if split == "test" else self._train
        shots = [(shot.prompt, shot.solution) for shot in self._shots]
        return [
            Example(
                prompt=self.ask(self.instruction, example.prompt, shots),
                solution=example.solution,
                columns=example.columns,
            )
            for example in chosen[:count]
        ]

    def check_named(self, split: str) -> None:
        """Raise UserError where no file is named that a split is read from; nothing is read."""
        wanted = {"data": split == "test", "train_data": split == "train" or self.few_shot > 0}
        for setting, path in (("train_data", self.train_data), ("data", self.data)):
            if wanted[setting] and path is None:
                raise self._no_file(setting)

    def _no_file(self, setting: str) -> UserError:
        flag, keys = setting.replace("_", "-"), ", ".join(f'"{name}": ...' for name in self.names)
        return UserError(
            f"{self.task} reads its problems from a file; give task.{setting} (--task.{flag} FILE), the path of a file "
            f"of lines {{{keys}}}"
        )

    @cached_property
    def _test(self) -> list[Example]:
        return self._read_file("data", self.data)

    @cached_property
    def _untested(self) -> list[Example]:
        tested = {prompt_key(example) for example in (self._test if self.data else [])}
        examples = self._read_file("train_data", self.train_data)
        return [example for example in examples if prompt_key(example) not in tested]

    @cached_property
    def _train(self) -> list[Example]:
        shown = {prompt_key(shot) for shot in self._shots}
        return [example for example in self._untested if prompt_key(example) not in shown]

    @cached_property
    def _shots(self) -> list[Example]:
        if not self.few_shot:
            return []
        if len(self._untested) < self.few_shot:
            raise UserError(f"task.few_shot is {self.few_shot} and {self.train_data} has fewer problems; lower it")
        return self._untested[: self.few_shot]

    def _read_file(self, setting: str, path: str | None) -> list[Example]:
        if path is None:
            raise self._no_file(setting)
        return each_line(path, read_lines(path), 1, lambda line: self.read(self.row(line, self.names)))
