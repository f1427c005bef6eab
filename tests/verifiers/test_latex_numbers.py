"""Which LaTeX answers are the same mathematics: small numbers, per cents, grouped digits, relations."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.tasks import Dataset
from unmask.tasks.math500 import Math500
from unmask.verifiers.latex import Checker

few = settings(max_examples=8, deadline=None, derandomize=True, database=None)
Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def patient() -> Iterator[Checker]:
    """Other work on the machine is no reason to find a difference."""
    checker = Checker(seconds=20, workers=2)
    yield checker
    checker.close()


SMALL_SAME = [
    (r"\frac{1}{3^{50}}", "3^{-50}"),
    (r"\frac{1}{1999!}", r"\frac{2000}{2000!}"),
    ("10^{-15}", r"\frac{1}{10^{15}}"),
    ("0.00000004", r"4 \times 10^{-8}"),
    (r"1.5 \times 10^{-20}", r"15 \times 10^{-21}"),
    (r"\sqrt{2} \cdot 10^{-20}", r"\frac{\sqrt{2}}{10^{20}}"),
    (r"\frac{x}{2^{70}}", "2^{-70}x"),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
    ("1/3", "0.333333"),
    ("0.666667", r"\frac{2}{3}"),
    (r"\frac{5\sqrt{42}}{27}", r"\frac{10\sqrt{10.5}}{27}"),
]
SMALL_DIFFERENT = [
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\frac{1}{2^{60}}", r"\frac{1}{2^{61}}"),
    ("10^{-20}", "10^{-21}"),
    ("0", "10^{-20}"),
    ("0", "0.00000001"),
    ("0.00000001", "0.00000002"),
    (r"1.5 \times 10^{-20}", r"2.5 \times 10^{-20}"),
    (r"\sqrt{2} \cdot 10^{-20}", r"\sqrt{3} \cdot 10^{-20}"),
    ("e^{-50}", "e^{-51}"),
    ("0.5^{100}", "0.5^{101}"),
    (r"1 + 10^{-20}", "1"),
    (r"\pi + 2^{-60}", r"\pi"),
    (r"\pi + \frac{1}{2004!}", r"\pi"),
    ("10^{20} + 1", "10^{20}"),
    ("x = 2^{-60}", "x = 2^{-61}"),
    ("x > 2^{-60}", "x > 2^{-61}"),
    (r"\frac{x}{2^{60}}", r"\frac{x}{2^{61}}"),
    ("2^{-60}x + y", "2^{-61}x + y"),
    ("(1, 2^{-60})", "(1, 2^{-61})"),
    ("[0, 2^{-60}]", "[0, 2^{-61}]"),
    (r"\{1, 2^{-60}\}", r"\{1, 2^{-61}\}"),
    (r"\begin{pmatrix} 2^{-60} \\ 1\end{pmatrix}", r"\begin{pmatrix} 2^{-61} \\ 1\end{pmatrix}"),
    ("1/30000", "0.000033"),
    ("1/3", "0.33"),
]
WRITTEN_SAME = [
    (r"12.5\%", "12.5"),
    ("12.5", r"12.50\%"),
    (r"-0.5\%", "-0.5"),
    (r"\frac{1}{2}\%", "0.5"),
    (r"28\%", "28"),
    ("12.5", "12.5 percent"),
    (r"\text{E}", "E"),
    ("E", r"\textbf{(E)}"),
    ("22222", r"22,\! 222"),
    ("1234567", r"1\,234\,567"),
    ("1234567", "1 234 567"),
    ("14000", "14{,}000"),
    ("14000", "14 {, }000"),
    (r"200, 300", r"200,\,300"),
    (r"x \leq 4", "x <= 4"),
    ("x <= 4", r"x \leqslant 4"),
    (r"x \ge 4", "x ≥ 4"),
    ("x < 4", r"x \lt 4"),
    (r"x \gt 4", "4 < x"),
    (r"x \neq 4", "x != 4"),
    ("x != 4", r"x \not= 4"),
    (r"-1 \lt x <= 4", "(-1, 4]"),
    ("π/2", r"\frac{\pi}{2}"),
    ("(-∞, 2) ∪ (3, ∞)", r"(-\infty, 2) \cup (3, \infty)"),
    ("5 − 7", "-2"),
]
WRITTEN_DIFFERENT = [
    (r"12.5\%", "125"),
    (r"12.5\%", "12.6"),
    (r"28\%", "29"),
    (r"\text{E}", "F"),
    ("200300", r"200,\,300"),
    ("34", r"3\,4"),
    ("234", "1 234"),
    ("x <= 4", "x < 4"),
    ("x >= 4", "x <= 4"),
    (r"x \lt 4", r"x \gt 4"),
    ("x != 4", "x = 4"),
    ("4", "x != 4"),
    ("24", "4!=24, 5"),
]


@pytest.mark.parametrize("pairs", [SMALL_SAME, WRITTEN_SAME])
def test_checker_same_in_both_directions(patient: Checker, pairs: Pairs) -> None:
    both = pairs + [(answer, reference) for reference, answer in pairs]
    assert [pair for pair, same in zip(both, patient.same(both), strict=True) if not same] == []


@pytest.mark.parametrize("pairs", [SMALL_DIFFERENT, WRITTEN_DIFFERENT])
def test_checker_same_is_false_in_both_directions(patient: Checker, pairs: Pairs) -> None:
    both = pairs + [(answer, reference) for reference, answer in pairs]
    assert [pair for pair, same in zip(both, patient.same(both), strict=True) if same] == []


FORMS = (r"\frac{{{0}}}{{{1}}}", "{0}/{1}", r"{0} \cdot ({1})^{{-1}}", r"\dfrac{{2 \cdot {0}}}{{{1} + {1}}}")
BELOW = {"1": 1, "3": 3, "10^7": 10**7, "2^{60}": 2**60, "2^{61}": 2**61, "10^{20}": 10**20}


@few
@given(
    numbers=st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from(sorted(BELOW)), st.sampled_from(FORMS)), min_size=2, max_size=4
    )
)
def test_checker_same_is_an_equivalence_of_exact_numbers(patient: Checker, numbers: list[tuple[int, str, str]]) -> None:
    pairs = list(product(numbers, numbers))
    written = [(a[2].format(*a[:2]), b[2].format(*b[:2])) for a, b in pairs]
    equal = [Fraction(a[0], BELOW[a[1]]) == Fraction(b[0], BELOW[b[1]]) for a, b in pairs]
    assert patient.same(written) == equal


@few
@given(
    digits=st.integers(1, 9999),
    power=st.integers(-40, 40),
    error=st.sampled_from((Fraction(0), Fraction(1, 10**3), Fraction(1, 10), Fraction(2))),
)
def test_checker_same_is_relative_for_decimals(patient: Checker, digits: int, power: int, error: Fraction) -> None:
    exact, decimal = rf"{digits} \cdot 10^{{{power}}}", rf"{digits}.0 \times 10^{{{power}}}"
    other = rf"{float(digits * (1 + error)):.4f} \times 10^{{{power}}}"
    assert patient.same([(exact, decimal), (exact, other)]) == [True, error == 0]


SOLUTION = r"As $x = 3$, we get $2x = 6$ and $y = 7$. Therefore the sum is $\boxed{13}$, not $12$."


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        ("17", "Hence it equals $17$.", 1.0),
        ("17", r"Hence it equals \( 17 \), as $3 + 15$ does not.", 0.0),
        ("17", "First $17$. It is $18$.", 0.0),
        ("21", "The largest $n$ is 21.", 1.0),
        ("13", SOLUTION, 1.0),
        (SOLUTION, "It is $13$.", 1.0),
        (SOLUTION, r"\boxed{6}", 0.0),
        (SOLUTION, r"\boxed{12}", 0.0),
        ("a = 4, b = 7", r"\boxed{a = 4} \text{ and } \boxed{b = 7}", 1.0),
        (r"\{4, 5, 6\}", r"\boxed{6},\boxed{4},\boxed{5}", 1.0),
        (r"\{4, 5, 6\}", r"\boxed{6},\boxed{4},\boxed{3}", 0.0),
        ("4", r"\boxed{4} or \boxed{5}", 0.0),
        ("5", r"\boxed{4} or \boxed{5}", 0.0),
        ("5", r"Not \boxed{4}. It is \boxed{5}", 1.0),
        ("4", r"Not \boxed{4}. It is \boxed{5}", 0.0),
        (r"\boxed{4}, \boxed{5}", r"\boxed{5, 4}", 1.0),
        ("22222", r"so $\boxed{22,\! 222}$", 1.0),
        (r"x \ge 4", "We find that $x >= 4$.", 1.0),
        (r"x \ge 4", "We find that $x > 4$.", 0.0),
        (r"\frac{1}{2004!}", r"$\frac{1}{2006!}$", 0.0),
        ("E", r"\boxed{\text{E}}", 1.0),
        ("New York", "New York", 1.0),
        ("5", "5 or 6", 0.0),
        ("5", "It is 5 or 6.", 0.0),
        ("3", "The pair is (2, 3).", 0.0),
        ("2", r"It is \sqrt{2}.", 0.0),
        ("3", "It is $x = 3y$.", 0.0),
    ],
)
def test_dataset_and_math500_rewards_of_latex_answers(answer: str, completion: str, reward: float) -> None:
    assert Dataset(answer_kind="latex").rewards([""], [completion], answer=[answer]) == [reward]
    if "boxed" in completion:
        assert Math500().rewards([""], [completion], answer=[answer]) == [reward]
