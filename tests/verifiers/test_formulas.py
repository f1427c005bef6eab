"""Where a completion states its answer in LaTeX; and nothing that a model writes makes the reader fail or wait."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.long import long_unless
from unmask.verifiers.formulas import declared_formula, joined_boxes, stated_formula, unwrapped

PAIRS = r"\begin{pmatrix} 3 & 1 \\ 5 & 2 \end{pmatrix}"
ROW = r"\left[\begin{array}{cc} 3 & 1 \end{array}\right]"
some = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    ("completion", "formula"),
    [
        # The last formula, however it is set.
        ("Hence it equals $17$.", "17"),
        ("Hence it equals $$17$$", "17"),
        (r"Hence it equals \( 17 \).", "17"),
        (r"Hence it equals \[ 17 \]", "17"),
        ("Hence it equals\n\\[\n17\n\\]\n", "17"),
        ("From $a = 2$ follows $b = 4$.", "b = 4"),
        (
            r"The inverse is $\begin{pmatrix} 3 & 1 \\ 5 & 2 \end{pmatrix}$.",
            r"\begin{pmatrix} 3 & 1 \\ 5 & 2 \end{pmatrix}",
        ),
        (
            r"So: $\left[\begin{array}{cc} 3 & 1 \end{array}\right]$",
            r"\left[\begin{array}{cc} 3 & 1 \end{array}\right]",
        ),
        ("I choose $E$.", "E"),
        (r"\begin{align*} a &= 3 \\ b &= 12. \end{align*}", "b  = 12"),
        (r"So \begin{align} a &= 3 \cdot 4 \\ &= 12 \end{align} as told.", "12"),
        (r"So \begin{equation} a = 12 \end{equation}", "a = 12"),
        ("The answer is $8$, as section 3 shows.", "8"),
        ("It is $8$, because 3 + 5 make that.", "8"),
        # A number or a formula without delimiters, where it comes later or is alone.
        ("The largest $n$ is 21.", "21"),
        ("As $n = 3$ we are done. There are 12 of them.", "12"),
        ("The volume of $ABCD$ is 120 cubes.", "120"),
        ("The chance is 2/3.", "2/3"),
        (r"The length is \frac{3}{4} metres.", r"\frac{3}{4}"),
        ("It grows by 100%.", "100%"),
        ("It covers 1,500.25m² of land", "1,500.25"),
        ("It costs 1,500.25€", "1,500.25"),
        ("The pair is (2, 3).", "(2, 3)"),
        ("The set is {1, 2, 3}", "{1, 2, 3}"),
        ("x is 2 or 3", "2 or 3"),
        ("There are 3! = 6 ways.", "3! = 6"),
        ("The answer is 5 in all 3 cases.", "5"),
        # Prices are no formulas.
        ("She pays $5 and he pays $7 for it, so $12", "12"),
        ("It was $10 before. Now $x = 8$.", "x = 8"),
        # All of the text.
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("12 percent", "12 percent"),
        ("x = 5", "x = 5"),
        ("New York", "New York"),
        ("the lines are parallel", "the lines are parallel"),
        ("", ""),
        # Several formulas that are one answer.
        ("We get $x = 1$ and $y = 2$.", "x = 1, y = 2"),
        ("The roots are $1$, $2$, and $5$.", "1, 2, 5"),
        ("Either $-1$ or $1$", "-1, 1"),
        ("$1$ then $2$", "2"),
        # What is declared goes before formulas.
        (r"\boxed{3} follows from $x = 4$.", "3"),
        ("#### 3/4\nas $x = 4$", "3/4"),
        ("<answer>7</answer> as $x = 4$", "7"),
        ("The final answer is $9$. I hope it is correct. Note that $4$ is not.", "9"),
        ("Final Answer: The final answer is 12,000. I hope it is correct.\nHere 3 is odd.", "12,000"),
        (r"First \boxed{3}. But the final answer is $4$.", "4"),
        (r"The final answer is not clear yet. So \boxed{3}.", "3"),
        # What the model goes on with is not its answer.
        (r"So $5$.<|eot_id|>And $6$", "5"),
        ("It is 5. <|im_start|>user", "5"),
        # A line break ends a formula for a line.
        ("So $ \n 9 \n $ it is", "So $ \n 9 \n $ it is"),
    ],
)
def test_stated_formula_finds_the_answer(completion: str, formula: str) -> None:
    assert stated_formula(completion) == formula


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{a = 4} \text{ and } \boxed{b = 7}", "a = 4, b = 7"),
        (r"\boxed{4},\boxed{5},\boxed{6}", "4, 5, 6"),
        (r"\boxed{4}, \boxed{5}, and \boxed{6}", "4, 5, 6"),
        (r"\boxed{4}\boxed{5}", "4, 5"),
        (r"$\boxed{4}$ or $\boxed{5}$", "4, 5"),
        (r"\(\boxed{4}\) and \(\boxed{5}\).", "4, 5"),
        (r"$$\boxed{(1, 2)} \quad \text{and} \quad \boxed{(3, 4)}$$", "(1, 2), (3, 4)"),
        (r"$u_1 = \boxed{x + 1}$ and $u_2 = \boxed{x - 1}$", "x + 1, x - 1"),
        (r"\boxed{4} \text{ for part (a) and } \boxed{5}", "4, 5"),
        (r"\boxed{4} cats and \boxed{5} dogs", "4, 5"),
        (r"\[\boxed{4}\] and" + "\n" + r"\[\boxed{5}\]", "4, 5"),
        (r"\boxed{4}; \boxed{4}", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        # Boxes that are steps, corrections or the answers of different sentences.
        (r"\boxed{4}. \boxed{5}", "5"),
        (r"\boxed{4}" + "\n" + r"\boxed{5}", "5"),
        (r"\boxed{4} then \boxed{5}", "5"),
        (r"\boxed{4}, so the sum is \boxed{5}", "5"),
        (r"\boxed{4}, no, \boxed{5}", "5"),
        (r"$x = \boxed{4}$ and thus the sum is $\boxed{5}$", "5"),
        (r"\boxed{4} a b c d e f and \boxed{5}", "5"),
        (r"\boxed{3} is wrong. \boxed{4} and \boxed{5}", "4, 5"),
        (r"\boxed{3} and \boxed{}", "3"),
        ("none", None),
    ],
)
def test_joined_boxes_joins_what_is_one_answer(text: str, joined: str | None) -> None:
    assert joined_boxes(text) == joined
    assert declared_formula(text) == joined
    assert joined_boxes(text.replace("boxed", "fbox")) == joined
    if joined is not None:
        assert stated_formula(f"<answer>{text}</answer>") == joined


def test_declared_formula_of_a_whole_solution() -> None:
    assert declared_formula("As $x = 3$ we get $2x = 6$. Therefore, $\\boxed{6}$ is our answer, not $7$.") == "6"
    assert declared_formula("steps\n#### 18 dollars a day for 7 days") == "18"
    assert declared_formula("The final answer is $28 \\%$. Note: 5 is not.") == r"28 \%"
    for reference in ("5", r"\frac{1}{2}", "x = 5", "$5$", "New York", r"5 \text{ or } 6", "the only root is 5"):
        assert declared_formula(reference) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"\text{E}", "E"),
        (r"$\textbf{New York}$", "New York"),
        (r"\mathrm{E}", "E"),
        (r"\textbf{\text{E}}", "E"),
        (r"\( \text{E} \)", "E"),
        ("E", "E"),
        (r"\text{E} and \text{F}", r"\text{E} and \text{F}"),
        (r"\sqrt{E}", r"\sqrt{E}"),
        ("$5", "$5"),
    ],
)
def test_unwrapped_takes_off_what_encloses_all(text: str, words: str) -> None:
    assert unwrapped(text) == words


PIECES = (
    "$",
    "$$",
    r"\(",
    r"\)",
    r"\[",
    r"\]",
    r"\boxed{",
    "}",
    "{",
    "<answer>",
    "####",
    "\n",
    " and ",
    ", ",
    "1",
    "x = ",
)
PIECES += (
    "x = ",
    "final answer is ",
    "answer ",
    r"\text{",
    r"\frac",
    ".",
    "word ",
    "a",
    "\\",
    "\\quad ",
    "<|x|>",
    r"\begin{align}",
    r"\end{align}",
)
texts = st.text(max_size=80) | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map("".join)


@some
@given(texts)
def test_stated_formula_never_fails(text: str) -> None:
    for read in (stated_formula, declared_formula, joined_boxes, unwrapped):
        read(text)


@some
@given(
    st.integers(-999, 999),
    st.sampled_from(("$%d$", "$$%d$$", r"\(%d\)", r"\[ %d \]", r"\boxed{%d}", "%d")),
    st.text("abc .,\n", max_size=30),
)
def test_stated_formula_is_found_behind_any_words(number: int, form: str, words: str) -> None:
    assert stated_formula(f"We saw {words} that it is {form % number}.") == str(number)


HOSTILE = [*PIECES, "$1$", "$1$ and ", r"\boxed{1} and ", r"\(1", "1 ", "x ", "$x$ ", "1. ", "<|"]


@pytest.mark.parametrize("piece", long_unless(HOSTILE[::-3], HOSTILE))
def test_stated_formula_of_hostile_text_takes_no_time(piece: str) -> None:
    text = piece * (50_000 // len(piece))
    for completion in (text, r"\boxed{" + text, "$" + text, text + "$", "<answer>" + text):
        started = time.perf_counter()
        stated_formula(completion)
        assert time.perf_counter() - started < 2
