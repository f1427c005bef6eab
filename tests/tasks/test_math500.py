"""MATH-500: files, and d1's scoring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.tasks.math500 import Math500
from unmask.verifiers.published import d1_math


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows = [
        {"problem": "Half?", "answer": r"\frac{1}{2}", "level": 3, "unique_id": "a"},
        {"problem": "Who?", "answer": r"\text{Evelyn}", "solution": "She ran."},
    ]
    paths = {"data": tmp_path / "test.jsonl", "train_data": tmp_path / "train.jsonl"}
    paths["data"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths["train_data"].write_text(json.dumps({"problem": "One?", "answer": "1"}) + "\n" + json.dumps(rows[0]) + "\n")
    return {name: str(path) for name, path in paths.items()}


def test_math500_reads_published_files(files: dict[str, str]) -> None:
    task = Math500(**files, few_shot=1)
    examples = task.examples("test", 10, 0)
    assert [example.columns for example in examples] == [{"answer": r"\frac{1}{2}"}, {"answer": r"\text{Evelyn}"}]
    assert "She ran." in examples[1].solution
    assert examples[0].prompt.index("\\boxed{1}") < examples[0].prompt.index("Question: Half?")
    assert task.examples("train", 10, 0) == []
    answers = [example.columns["answer"] for example in examples]
    solutions = [example.solution for example in examples]
    assert task.rewards([""] * 2, solutions, answer=answers) == [1.0, 1.0]
    assert task.metrics([""] * 2, [r"\boxed{0.5}", "Evelyn"], answer=answers) == {"solved": [1.0, 0.0]}
    assert task.well_formed(solutions[0])
    assert not task.well_formed("0.5")


@pytest.mark.parametrize(
    ("completion", "reference", "published"),
    [
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True),
        (r"\boxed{\frac12}", r"\frac{1}{2}", True),
        (r"\boxed{\frac1{2}}", r"\frac{1}{2}", True),
        (r"\boxed{1/2}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{.25}", "0.25", True),
        (r"\boxed{0.25}", r"\frac{1}{4}", False),
        (r"\boxed{\sqrt3}", r"\sqrt{3}", True),
        (r"\boxed{x = 5}", "5", True),
        (r"\boxed{f(x) = 5}", "5", False),
        (r"\boxed{5\text{ cm}}", "5", True),
        (r"\boxed{5\text{cm}}", "5", False),
        (r"\boxed{90^\circ}", "90", True),
        (r"\boxed{\left(1, 2\right)}", "(1,2)", True),
        (r"\boxed{10,\!000}", "10,000", True),
        (r"\boxed{10000}", "10,000", False),
        (r"\boxed{50\%}", "50", True),
        (r"\boxed{\$5}", "5", True),
        (r"\boxed{1} \boxed{2}", "2", True),
        (r"\boxed{2", "2", False),
        ("<answer>2</answer>", "2", False),
        ("2", "2", True),
        (r"\boxed{\sqrt}", r"\sqrt", True),
        (r"\boxed{}", "0", False),
    ],
)
def test_d1_math_correct_compares_cleaned_strings(completion: str, reference: str, published: bool) -> None:
    assert d1_math.math_correct(completion, reference) is published
    assert Math500(scoring="d1").metrics([""], [completion], answer=[reference]) == {"solved": [float(published)]}


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (r"<answer>\boxed{5}</answer>", 3.0),
        (r"<answer>\boxed{6}</answer>", 1.0),
        ("<answer>5</answer>", 0.75),
        (r"\boxed{5}", 2.5),
        ("5", 0.25),
        ("<answer>5", 0.25),
    ],
)
def test_d1_math_rewards_tags_and_boxes(completion: str, reward: float) -> None:
    assert Math500(scoring="d1").rewards([""], [completion], answer=["5"]) == [reward]
