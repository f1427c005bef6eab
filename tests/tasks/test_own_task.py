"""A user's own task, one class in one file outside the package, goes through Examples and Evaluator."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unmask.data.examples import Examples
from unmask.data.tokenization import task_tokenizer
from unmask.denoisers.tiny import tiny_denoiser
from unmask.evaluation.evaluator import Evaluator
from unmask.sampling.sampler import Sampler
from unmask.tasks.base import Task
from unmask.uniforms import Uniforms

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from unmask.data.example import Example, check_split, in_split
from unmask.tasks.base import Task, column


@dataclass(frozen=True, kw_only=True)
class Doubling(Task):
    name: ClassVar[str] = "doubling"
    max_new_tokens: ClassVar[int] = 4
    vocabulary: ClassVar[tuple[str, ...]] = tuple("0123456789+=")

    largest: int = 60

    def examples(self, split, count, seed):
        check_split(self, split)
        numbers = [n for n in range(1, self.largest + 1) if in_split(str(n), split)]
        return [Example(prompt=f"{n}+{n}=", solution=str(2 * n), columns={"answer": 2 * n}) for n in numbers[:count]]

    def rewards(self, prompts, completions, **columns):
        answers = column(columns, "answer", completions)
        return [float(text.strip() == str(answer)) for text, answer in zip(completions, answers, strict=True)]
"""


@pytest.fixture
def own(tmp_path: Path) -> ModuleType:
    """The user's file, imported from where it lies."""
    path = tmp_path / "own_task.py"
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_task_defaults_suit_a_verifying_task_of_prose(own: ModuleType) -> None:
    class Prose(own.Doubling):
        vocabulary = Task.vocabulary

    task = Prose()
    assert task.splits == ("train", "test")
    assert task.vocabulary == ()
    assert task.verifies
    assert task.well_formed(" 4 ")
    assert not task.well_formed(" \n")
    assert task.metrics(["2+2=", "3+3="], ["4", "5"], answer=[4, 6]) == {"solved": [1.0, 0.0]}


@pytest.mark.parametrize("missing", ["examples", "rewards", "max_new_tokens"])
def test_task_without_a_required_member_cannot_be_made(missing: str) -> None:
    members: dict[str, Any] = {
        "name": "partial",
        "max_new_tokens": 4,
        "examples": lambda self, split, count, seed: [],
        "rewards": lambda self, prompts, completions, **columns: [],
    }
    del members[missing]
    with pytest.raises(TypeError, match=missing):
        type("Partial", (Task,), members)()


def test_evaluator_scores_an_own_task(own: ModuleType) -> None:
    task = own.Doubling()
    tokenizer = task_tokenizer(task.vocabulary)
    denoiser = tiny_denoiser(
        vocabulary=len(tokenizer),
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        hidden=16,
        layers=1,
        heads=2,
        max_length=16,
        seed=0,
    ).eval()
    items = task.examples("test", 5, seed=0)
    evaluator = Evaluator(
        task=task,
        tokenizer=tokenizer,
        examples=Examples.of(items, tokenizer, denoiser.eos_id, denoiser.max_length - task.max_new_tokens),
        uniforms=Uniforms(),
        batch=3,
    )
    sampler = Sampler(max_new_tokens=task.max_new_tokens, block_length=4, steps=2, temperature=1.0)
    assert len(items) == 5
    assert set(evaluator.metrics(denoiser, sampler)) == {"solved"}
    assert evaluator.scored(range(5), [item.solution for item in items])["solved"] == [1.0] * 5
    assert evaluator.scored(range(5), ["1"] * 5)["solved"] == [0.0] * 5
