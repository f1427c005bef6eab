"""Arithmetic: the written steps, the reward on the answer, and the splits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import UserError
from unmask.tasks import Arithmetic
from unmask.tasks.arithmetic import steps
from unmask.verifiers.expressions import leaves, parse, render, value


@pytest.mark.parametrize(
    ("problem", "chain"),
    [
        ("(3+5)*4-7", "8*4-7=32-7=25"),
        ("3+5*4-2*6", "3+20-2*6=23-2*6=23-12=11"),
        ("1+2+3+4", "3+3+4=6+4=10"),
        ("9-(6*2+2)", "9-(12+2)=9-14=-5"),
        ("2+(2-6)*5", "2+(-4*5)=2+(-20)=-18"),
        ("3*(4-9)", "3*(-5)=-15"),
        ("4*5", "20"),
    ],
)
def test_steps_work_an_expression_out(problem: str, chain: str) -> None:
    assert "=".join(map(render, steps(parse(problem)))) == chain


@pytest.mark.parametrize(("terms", "max_number"), [(2, 9), (3, 9), (4, 9), (4, 99), (5, 9)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_arithmetic_every_solution_is_right(terms: int, max_number: int, split: str) -> None:
    task = Arithmetic(terms=terms, max_number=max_number)
    for example in task.examples(split, 60, 3):
        problem = example.prompt.removesuffix("=")
        answer = value(problem)
        assert len(leaves(parse(problem))) == terms
        assert all(1 <= number <= max_number for number in leaves(parse(problem)))
        assert example.columns == {"answer": answer}
        parts = example.solution.split("=")
        assert len(parts) == terms - 1
        assert all(-99 <= number <= 999 for part in parts for number in leaves(parse(part)))
        assert set(example.prompt + example.solution) <= set(task.vocabulary)
        assert len(example.solution) + 1 <= task.max_new_tokens
        scores = task.metrics([example.prompt], [example.solution], answer=[answer])
        assert scores == {"solved": [1.0], "chain_valid": [1.0]}


@pytest.mark.parametrize(
    ("completion", "solved", "chain_valid"),
    [
        ("8*4-7=32-7=25", 1.0, 1.0),
        ("25", 1.0, 1.0),
        (" 25 ", 1.0, 1.0),
        ("8*4-7=30-7=25", 1.0, 2 / 3),
        ("8*4-7=32-7=24", 0.0, 2 / 3),
        ("8*4-7=32-7", 0.0, 1.0),  # the last step is missing
        ("25=", 0.0, 0.5),
        ("=25", 1.0, 0.5),
        ("025", 0.0, 0.0),
        ("+25", 0.0, 0.0),
        ("25.0", 0.0, 0.0),
        ("２５", 0.0, 0.0),
        ("9**9**9=25", 1.0, 0.5),
        ("", 0.0, 0.0),
        ("1/0=7", 0.0, 0.0),
    ],
)
def test_arithmetic_rewards_and_metrics(completion: str, solved: float, chain_valid: float) -> None:
    scores = Arithmetic().metrics(["(3+5)*4-7="], [completion], answer=[25])
    assert scores == {"solved": [solved], "chain_valid": [pytest.approx(chain_valid)]}


def test_arithmetic_negative_answers() -> None:
    assert Arithmetic().rewards(["", ""], ["2-9=-7", "2-9=7"], answer=[-7, -7]) == [1.0, 0.0]


@given(st.text(alphabet="0123456789+-*/()= _\x00", max_size=40))
@settings(deadline=None)
def test_arithmetic_any_text_can_be_scored(completion: str) -> None:
    scores = Arithmetic().metrics([""], [completion], answer=[25])
    assert scores["solved"][0] in (0.0, 1.0)
    assert 0.0 <= scores["chain_valid"][0] <= 1.0


def test_arithmetic_splits_share_no_problem() -> None:
    task = Arithmetic(terms=2, max_number=20)
    train = {example.prompt for seed in range(3) for example in task.examples("train", 1000, seed)}
    test = {example.prompt for seed in range(3) for example in task.examples("test", 150, seed)}
    assert len(train) > 600
    assert len(test) > 50
    assert not train & test


@given(st.integers(0, 15), st.integers(0, 15), st.integers())
@settings(deadline=None, max_examples=20)
def test_arithmetic_examples_are_a_stable_prefix(first: int, second: int, seed: int) -> None:
    task = Arithmetic()
    shorter, longer = sorted((first, second))
    assert task.examples("test", longer, seed)[:shorter] == task.examples("test", shorter, seed)


def test_arithmetic_max_new_tokens_per_term() -> None:
    assert [Arithmetic(terms=terms).max_new_tokens for terms in (2, 3, 4, 5)] == [8, 16, 24, 32]


def test_arithmetic_refuses_wrong_settings_and_columns() -> None:
    with pytest.raises(UserError, match="terms is 6; choose an integer from 2 to 5"):
        Arithmetic(terms=6)
    with pytest.raises(UserError, match="max_number is 100"):
        Arithmetic(max_number=100)
    with pytest.raises(UserError, match="'dev'; choose one of train, test"):
        Arithmetic().examples("dev", 1, 0)
    with pytest.raises(UserError, match="'answer'"):
        Arithmetic().rewards([""], ["1"])


def test_arithmetic_well_formed_is_a_chain_of_expressions() -> None:
    task = Arithmetic()
    assert task.well_formed("8*4-7=32-7=25")
    assert task.well_formed("25")
    assert [text for text in ("", "25=", "=25", "8*=3", "8==8") if task.well_formed(text)] == []
