"""GSM8K: files, prompts, splits, and both ways to score."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from unmask.data.example import Example
from unmask.errors import UserError
from unmask.tasks.gsm8k import GSM8K
from unmask.verifiers.published import d1
from unmask.verifiers.quantities import answers_number, reference_number

TRAIN = [
    ("Two and three?", "2+3=<<2+3=5>>5\n#### 5"),
    ("Ten times a hundred?", "#### 1,000"),
    ("Minus four?", "#### -4"),
]
TEST = [("Six times seven?", "6*7=42\n#### 42"), ("Two  and\nthree?", "#### 5")]


def written(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {"data": written(tmp_path / "test.jsonl", TEST), "train_data": written(tmp_path / "train.jsonl", TRAIN)}


def rewards(task: GSM8K, examples: list[Example], completions: list[str]) -> list[float]:
    return task.rewards([""] * len(examples), completions, answer=[example.columns["answer"] for example in examples])


def test_gsm8k_solutions_are_right_and_well_formed(files: dict[str, str]) -> None:
    task = GSM8K(**files)
    for split in task.splits:
        examples = task.examples(split, 10, 0)
        solutions = [example.solution for example in examples]
        assert rewards(task, examples, solutions) == [1.0] * len(examples)
        assert rewards(task, examples, ["\\boxed{123}"] * len(examples)) == [0.0] * len(examples)
        assert all(map(task.well_formed, solutions))
    assert not task.well_formed("I do not know, 5 perhaps")


def test_gsm8k_files_are_read_in_order_whatever_the_seed(files: dict[str, str]) -> None:
    examples = GSM8K(**files).examples("test", 10, 0)
    assert [example.columns["answer"] for example in examples] == ["42", "5"]
    assert GSM8K(**files).examples("test", 1, 7) == examples[:1]
    assert examples[0].prompt.endswith("\n\nQuestion: Six times seven?\n")
    assert "\\boxed{}" in examples[0].prompt
    assert examples[0].solution.startswith("<reasoning>\n6*7=42\n</reasoning>\n<answer>")


def test_gsm8k_leaves_out_calculator_notes(files: dict[str, str]) -> None:
    shown = GSM8K(train_data=files["train_data"]).examples("train", 1, 0)
    assert "2+3=5\n</reasoning>" in shown[0].solution


def test_gsm8k_what_is_tested_or_shown_is_not_trained_on(files: dict[str, str]) -> None:
    assert [e.columns["answer"] for e in GSM8K(**files).examples("train", 10, 0)] == ["1,000", "-4"]
    task = GSM8K(**files, few_shot=1)
    assert [e.columns["answer"] for e in task.examples("train", 10, 0)] == ["-4"]
    prompt = task.examples("test", 1, 0)[0].prompt
    assert prompt.count("Question: ") == 2
    assert prompt.index("Ten times a hundred?") < prompt.index("\\boxed{1,000}") < prompt.index("Six times seven?")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"question": "a"}', "line 1: keys are missing; write an object with question, answer"),
        ('{"question": "a", "answer": 5}', "line 1: answer is 5; write it as text"),
        ('{"question": "", "answer": "#### 5"}', "line 1: question is ''"),
        ('{"question": "a", "answer": "five"}', "line 1: answer ends in 'five'; end it in a number"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "keys are missing"),
        ("", "is empty"),
    ],
)
def test_gsm8k_refuses_faulty_files(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "faulty.jsonl"
    path.write_text(rows)
    with pytest.raises(UserError, match=message):
        GSM8K(data=str(path)).examples("test", 1, 0)


def test_gsm8k_refuses_faulty_settings(files: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"give task.data \(--task.data FILE\), the path of a file of lines .*question"):
        GSM8K().examples("test", 1, 0)
    with pytest.raises(UserError, match=r"give task\.train_data \(--task\.train-data FILE\)"):
        GSM8K(data=files["data"], few_shot=1).examples("test", 1, 0)
    with pytest.raises(UserError, match=r"few_shot is 4 and .* has fewer problems"):
        GSM8K(**files, few_shot=4).examples("test", 1, 0)
    with pytest.raises(UserError, match="few_shot is -1"):
        GSM8K(few_shot=-1)
    with pytest.raises(UserError, match="scoring is 'strict'; choose one of corrected, d1"):
        GSM8K(scoring="strict")
    with pytest.raises(UserError, match="no split 'dev'"):
        GSM8K(**files).examples("dev", 1, 0)
    with pytest.raises(UserError, match="column 'answer'"):
        GSM8K().rewards([""], [""])
    with pytest.raises(UserError, match="answer ends in 'many'"):
        GSM8K().rewards([""], [""], answer=["many"])


def test_gsm8k_the_reference_may_be_the_whole_published_answer() -> None:
    assert reference_number("so 2+3=5\n#### 5") == reference_number("5") == 5
    assert reference_number("#### 70,000") == 70_000
    assert reference_number("#### 18 dollars a day for 7 days") == 18
    assert reference_number("As 2+3=5 we get \\boxed{5}.") == 5
    assert GSM8K().rewards([""], ["\\boxed{5}"], answer=["so 2+3=5\n#### 5"]) == [1.0]
    assert GSM8K(scoring="d1").metrics([""], ["\\boxed{5}"], answer=["so\n#### 5"]) == {"solved": [1.0]}


@pytest.mark.parametrize(
    ("completion", "wanted", "corrected", "published"),
    [
        ("\\boxed{6,277}", 6277, True, False),
        ("\\boxed{6,277}", 6, False, True),
        ("<answer>1,234</answer>", 234, False, True),
        ("\\boxed{\\frac{2}{3}}", 2, False, True),
        ("\\boxed{86, 42}", 86, False, True),
        ("\\boxed{1} \\boxed{2}", 1, False, True),
        ("\\boxed{1} \\boxed{2}", 2, True, False),
        ("\\boxed{120\n</answer}", 120, True, False),
        ("<answer>7", 7, True, False),
        ("so it is 7.", 7, True, False),
        ("#### 7", 7, True, False),
        ("<answer>1</answer> <answer>2</answer>", 2, True, False),
        ("\\boxed{-7}", -7, True, False),
        ("<answer>7</answer>", 7, True, True),
        ("so\n#### 18 dollars a day for 7 days", 18, True, False),
        ("so\n#### 18 dollars a day for 7 days", 7, False, False),
        ("The probability is 3/4.", 4, False, False),
        ("\\boxed{7 \\text{ apples}}", 7, True, True),
    ],
)
def test_answers_number_and_d1_part_here(completion: str, wanted: int, corrected: bool, published: bool) -> None:
    assert answers_number(completion, Fraction(wanted)) is corrected
    assert d1.gsm8k_correct(completion, d1.gsm8k_reference(str(wanted))) is published


def test_gsm8k_d1_rewards_are_the_published_sum() -> None:
    completion = "<reasoning>\nsteps\n</reasoning>\n<answer>\n5\n</answer>\n"
    assert GSM8K(scoring="d1").rewards([""], [completion], answer=["5"]) == [3.5]
    assert GSM8K(scoring="d1").rewards([""], ["nothing"], answer=["5"]) == [0.0]
