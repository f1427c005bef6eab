"""Countdown in words: the puzzles are Countdown's, and only a right expression solves one."""

from __future__ import annotations

import pytest

from unmask.errors import UserError
from unmask.tasks import Countdown
from unmask.tasks.countdown_words import CountdownWords, is_solved_in_words
from unmask.verifiers.published import d1

TASKS = [CountdownWords(), CountdownWords(count=4, max_number=20)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_countdown_words_puzzles_are_those_of_countdown(task: CountdownWords, split: str) -> None:
    examples = task.examples(split, 30, 5)
    puzzles = Countdown(count=task.count, max_number=task.max_number).examples(split, 30, 5)
    assert [example.columns for example in examples] == [puzzle.columns for puzzle in puzzles]
    for example in examples:
        numbers, target = example.columns["numbers"], example.columns["target"]
        assert example.prompt.endswith(f"\n\nQuestion: Numbers: {numbers}\nTarget: {target}\n")
        assert task.well_formed(example.solution)
    columns = {name: [example.columns[name] for example in examples] for name in ("numbers", "target")}
    solutions = [example.solution for example in examples]
    for scoring in ("corrected", "d1"):
        scored = CountdownWords(scoring=scoring).metrics([""] * 30, solutions, **columns)
        assert scored == {"solved": [1.0] * 30}
    assert task.rewards([""] * 30, solutions, **columns) == [1.0] * 30
    # The published reward does not look into the box that the published prompt asks for.
    assert CountdownWords(scoring="d1").rewards([""] * 30, solutions, **columns) == [0.1] * 30


def test_countdown_words_settings_are_checked() -> None:
    with pytest.raises(UserError, match="count is 5"):
        CountdownWords(count=5)
    with pytest.raises(UserError, match="scoring is ''"):
        CountdownWords(scoring="")
    with pytest.raises(UserError, match="column 'numbers'"):
        CountdownWords().rewards([""], [""], target=[1])


@pytest.mark.parametrize(
    ("completion", "corrected", "published"),
    [
        (r"\boxed{4 * 5 + 2}", True, True),
        (r"\boxed{2 + 4 \times 5 = 22}", True, True),
        (r"<answer>4 * 5 + 2</answer>", True, False),
        (r"<answer>4 \times 5 + 2</answer>", True, False),
        (r"\boxed{22 = 4 * 5 + 2}", True, False),
        (r"\boxed{\frac{4}{1} + 2}", False, False),
        ("4*5+2", True, True),
        ("\\boxed{4 * 5 + 2>", True, False),
        ("Try 4 * 5 + 2 = 22, no.", False, True),
        (r"\boxed{4 * 5 + 2} or \boxed{0}", False, False),
        (r"\boxed{4 * 5 + 2 + 0}", False, False),
        (r"\boxed{4 * 5}", False, False),
        (r"\boxed{22}", False, False),
        (r"\boxed{__import__('os').getpid()}", False, False),
        (r"\boxed{-(-5) * 4 + 2}", False, True),
    ],
)
def test_is_solved_in_words_and_d1_part_here(completion: str, corrected: bool, published: bool) -> None:
    assert is_solved_in_words(completion, [2, 4, 5], 22) is corrected
    assert d1.countdown_correct(completion, [2, 4, 5], 22) is published


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7/2", 3.5),
        ("7//2", 3),
        ("2**3", 8),
        ("-3 + +4", 1),
        ("1.5*2", 3.0),
        (".5", 0.5),
        (" 1\n", 1),
        ("1/0", None),
        ("0**-1", None),
        ("9**9**9", None),
        ("9**9**9**9", None),
        ("2**9999999999", None),
        ("1.5**99999", None),
        ("(1", None),
        ("1 2", None),
        ("1(2)", None),
        ("()", None),
        ("...", None),
        ("007", None),
        ("1\n+2", None),
        ("٣", None),
        ("", None),
        ("a", None),
        ("(" * 400 + "1" + ")" * 400, None),
        ("-" * 900 + "1", 1),
        ("1" * 1001, None),
    ],
)
def test_d1_arithmetic_is_pythons(text: str, value: float | None) -> None:
    result = d1.arithmetic(text)
    assert result == value
    assert type(result) is type(value)


def test_d1_arithmetic_of_negative_roots_is_complex_as_in_python() -> None:
    assert d1.arithmetic("(-8)**(1/3)") == (-8) ** (1 / 3)
    assert d1.countdown_correct("\\boxed{(0-1)**(1/2)}", [0, 1, 1, 2], 0) is False


def test_d1_countdown_counts_floats_to_a_hundred_thousandth() -> None:
    assert d1.countdown_correct("\\boxed{10000001/10000000}", [10000001, 10000000], 1)
    assert not is_solved_in_words("\\boxed{10000001/10000000}", [10000001, 10000000], 1)


@pytest.mark.parametrize(
    "answer", ["2 ＋ 4 ⋅ 5", "4∗5+2", "(4 ＊ 5) ＋ 2", r"4 \ast 5 + 2", "４×５＋２", "4 x 5 + 2 = 22", r"4 \* 5 + 2"]
)
def test_is_solved_in_words_reads_every_sign(answer: str) -> None:
    assert is_solved_in_words(rf"\boxed{{{answer}}}", [2, 4, 5], 22)
    assert is_solved_in_words(f"<answer>{answer}</answer>", [2, 4, 5], 22)
    assert not is_solved_in_words(rf"\boxed{{{answer}}}", [2, 4, 5], 23)


@pytest.mark.parametrize(
    "answer", ["6 ∕ 3 ‑ 1", "6⁄3−1", "6 ／ 3 － 1", r"\frac63 - 1", r"\cfrac{6}{3} – 1", r"\tfrac 6 3 - 1", "6➗3—1"]
)
def test_is_solved_in_words_reads_every_fraction(answer: str) -> None:
    assert is_solved_in_words(rf"\boxed{{{answer}}}", [1, 3, 6], 1)
    assert not is_solved_in_words(rf"\boxed{{{answer}}}", [1, 3, 6], 3)


@pytest.mark.parametrize("answer", ["3² + 4", "½ + 4", "4 ^ 5 + 2", "45 + 2", r"\sqrt{4} \cdot 5"])
def test_is_solved_in_words_reads_nothing_into_other_signs(answer: str) -> None:
    assert not any(is_solved_in_words(rf"\boxed{{{answer}}}", [3, 4, 2], target) for target in range(100))
