"""Where answers stand, which numbers they are; and nothing that a model writes makes the readers fail or wait."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.long import long_unless
from unmask.tasks.countdown_words import expression_of, is_solved_in_words
from unmask.verifiers.answers import DECLARED, before_end, boxed, final_answer, hashed, last_number, tagged
from unmask.verifiers.published import d1, d1_math
from unmask.verifiers.quantities import answers_number, quantity

some = settings(max_examples=100, deadline=None, derandomize=True, database=None)
ALL = (*DECLARED, "number")


@pytest.mark.parametrize(
    ("text", "last", "first"),
    [
        (r"\boxed{42}", "42", "42"),
        (r"\boxed{1} then \boxed{2}", "2", "1"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\boxed{5}}", "5", r"\boxed{5}"),
        (r"\boxed{...} \boxed{} \boxed{7}", "7", "7"),
        (r"\boxed{7} so \boxed{}", "7", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", r"\{1, 2\}"),
        (r"\fbox{3}", "3", "3"),
        ("so boxed{27}", "27", "27"),
        (r"\text{ open \boxed{8}", "8", "8"),
        ("\\boxed{12 \n more", "12", "12"),
        ("\\boxed{12>\n</answer>", "12", "12"),
        ("\\boxed{120\n</answer}", "120", "120"),
        ("\\boxed{63\\text{ minutes</answer>", r"63\text{ minutes", r"63\text{ minutes"),
        (r"\boxed {9}", "9", "9"),
        (r"\boxed{" + "x" * 401 + "}", None, None),
        ("boxed 5", None, None),
        ("", None, None),
    ],
)
def test_boxed_reads_boxes(text: str, last: str | None, first: str | None) -> None:
    assert boxed(text) == last
    assert boxed(text, "first") == first


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>42</answer>", "42"),
        ("<answer>\n 42 \n</answer>", "42"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer></answer>", "1"),
        ("<answer>42", "42"),
        ("<Answer>42</ANSWER >", "42"),
        (r"<answer>It is \boxed{42} apples.</answer>", "42"),
        (r"<answer>\boxed{}32</answer>", "}32"),
        ("<answer>42</ans", "42"),
        ("</answer> 42", None),
        ("<answers>42</answers>", None),
        ("<answer>...</answer>", None),
        ("answer: 42", None),
    ],
)
def test_tagged_reads_tags(text: str, answer: str | None) -> None:
    assert tagged(text) == answer
    assert tagged("<answer>7</answer>" + text, "first") == "7"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 42", "42"),
        ("#### -1,234.5 ", "-1,234.5"),
        ("#### $5.", "$5."),
        ("#### 1\n#### 2\n", "2"),
        ("so it is #### 3", "3"),
        ("#### Step 1: add", None),
        ("#### 1. Add", None),
        ("### 42", None),
    ],
)
def test_hashed_reads_hashes(text: str, answer: str | None) -> None:
    assert hashed(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("from 3 to 42.", 42),
        ("1,234 and 12,345,678", 12_345_678),
        ("it is -7", -7),
        ("30-20", 20),
        ("costs -$5.50!", Fraction(-11, 2)),
        ("half is .5", Fraction(1, 2)),
        ("x_1 and A4", None),
        ("none", None),
    ],
)
def test_last_number_reads_the_last_number(text: str, number: Fraction | int | None) -> None:
    found = last_number(text)
    assert (found if found is None else quantity(found)) == number


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("18 dollars a day for 7 days", 18),
        ("18 dollars per week in 3 weeks.", 18),
        ("18 dollars. He keeps 7 of them.", 18),
        ("18 km/h over 7 hours", 18),
        ("1½ cups", Fraction(3, 2)),
        ("3⁄4", Fraction(3, 4)),
        ("$1,250 a month, for 12 months", None),  # two sentences: no telling
        ("3/4", Fraction(3, 4)),
        ("-3 / 4 of a cup", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("2 1/2 hours", Fraction(5, 2)),
        (r"$\frac{3}{4}$", Fraction(3, 4)),
        (r"\dfrac34 of 8 cups", None),
        (r"$8\,000$", 8000),
        (r"8{,}000 people", 8000),
        (r"12,\!000", 12_000),
        ("8\u202f000", 8000),
        ("5 million dollars", 5_000_000),
        ("90^\\circ", 90),
        ("20 cm^2", 20),
        ("20%", 20),
        ("x = 12", 12),
        ("10 - 4 = 6", 6),
        ("Answer: 18", 18),
        ("**18**", 18),
        ("18 or 20", None),
        ("5 feet 3 inches", None),
        ("18 dollars and 20 cents", None),
        ("5\\pi", None),
        ("2^3", None),
        ("3 × 4", None),
        ("2:30", None),
    ],
)
def test_hashed_a_whole_quantity_is_read(line: str, number: Fraction | int | None) -> None:
    answer = final_answer(f"3 + 4 = 7\n#### {line}")
    assert answer is not None
    assert quantity(answer) == number


@pytest.mark.parametrize("line", ["Step 1: add", "1. Add 5", "2) Add 5", "3: Add 5", "2nd step of 3", "In 5 days"])
def test_hashed_no_heading_is_an_answer(line: str) -> None:
    assert hashed(f"#### {line}\n") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The probability is 3/4.", Fraction(3, 4)),
        (r"The probability is $\frac{3}{4}$.", Fraction(3, 4)),
        (r"The probability is $\frac34$.", Fraction(3, 4)),
        ("It is **3/4**.", Fraction(3, 4)),
        ("It is ¾.", Fraction(3, 4)),
        ("It is -3/4 of it.", Fraction(-3, 4)),
        ("He needs 2 1/2 cups.", Fraction(5, 2)),
        (r"He needs $2\frac{1}{2}$ cups.", Fraction(5, 2)),
        ("In step 3, 1/2 is left", Fraction(1, 2)),
        ("so $8\\,000$", 8000),
        ("so 8{,}000 people", 8000),
        ("so 1\u202f234 people", 1234),
        ("It costs 5 million.", 5_000_000),
        ("The area is 20 cm^2.", 20),
        (r"The area is $20\text{ cm}^2$.", 20),
        ("at 2:00 pm", 2),
        ("9 = 18/2", 9),
        ("18/2 = 9", 9),
        ("5 apples/day", 5),
        ("It is 3 or 4", 4),
        # What the box would not take for a number is none here either.
        (r"The area is $25\pi$.", None),
        (r"It is $5\sqrt{2}$.", None),
        (r"It is \sqrt{2}.", None),
        ("It is 2^3.", None),
        ("It is 10^{-3}", None),
        ("It is 3 × 4.", None),
        ("It is 3 * 4.", None),
        ("It is 3 + 4.", None),
        ("It is 2(3).", None),
        ("at 2:30", None),
        ("3:4", None),
        ("2,74", None),
        ("1/2/3", None),
        ("1/0", None),
    ],
)
def test_last_number_a_whole_quantity_is_read(text: str, number: Fraction | int | None) -> None:
    found = last_number(text)
    assert found is not None
    assert quantity(found) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1 000", 1000),
        (r"1\,000\,000", 1_000_000),
        (r"11,\! 111,\! 111", 11_111_111),
        ("14 {, }916", 14_916),
        ("1\u00a0234.5", Fraction(2469, 2)),
        (r"72 \text{ cm}^2", 72),
        (r"100,\,200", None),
        (r"3\,4", None),
        ("1 00", None),
        ("1 100/200", Fraction(3, 2)),
        ("2(3)", None),
        ("(2)(3)", None),
        ("f(5)", None),
        ("2 * 3", None),
    ],
)
def test_quantity_of_grouped_digits_and_brackets(text: str, number: Fraction | int | None) -> None:
    assert quantity(text) == number


GROUPS = (",", r"\,", r"{,}", r",\!", r",\! ", "\u202f", "\u00a0", "~", r"\;")


@some
@given(
    number=st.integers(-(10**12), 10**12),
    separator=st.sampled_from(GROUPS),
    form=st.sampled_from(
        ("#### {}", "#### {} euros in 7 days", "It is {}.", "${}$", r"\boxed{{{}}}", "= {} m^2 in all")
    ),
    scale=st.sampled_from(("", " million", " thousand")),
)
def test_answers_number_of_every_grouping(number: int, separator: str, form: str, scale: str) -> None:
    completion = form.format(f"{number:,}".replace(",", separator) + scale)
    wanted = Fraction(number) * {"": 1, " million": 10**6, " thousand": 1000}[scale]
    if "m^2" not in form or not scale:
        assert answers_number(completion, wanted)
        assert not answers_number(completion, wanted + 1)


@some
@given(
    whole=st.integers(0, 999),
    above=st.integers(1, 99),
    below=st.integers(2, 99),
    form=st.sampled_from(("#### {}", "#### {} cups for 6 people", "It takes 3 steps, so {} cups.", "${}$", "**{}**")),
    written=st.sampled_from(("{}/{}", r"\frac{{{}}}{{{}}}", r"\tfrac{{{}}} {{{}}}", "{} / {}")),
)
def test_answers_number_of_a_fraction_in_every_format(
    whole: int, above: int, below: int, form: str, written: str
) -> None:
    mixed = f"{whole} " if whole else ""
    completion = form.format(mixed + written.format(above, below))
    assert answers_number(completion, whole + Fraction(above, below))
    assert not answers_number(completion, Fraction(below)) or whole + Fraction(above, below) == below


def test_final_answer_takes_formats_in_order() -> None:
    text = "the sum of 1 \\boxed{2} #### 3\n<answer>4</answer> and 5"
    assert final_answer(text, ALL) == "4"
    assert final_answer(text, ("boxed", "answer")) == "2"
    assert final_answer(text, ("number",)) == "5"
    assert final_answer("the sum is 5") is None


def test_before_end_cuts_at_the_end_token() -> None:
    assert before_end("a<|eot_id|>b<|endoftext|>") == "a"
    assert before_end("a<|mask|>b") == "a<|mask|>b"
    assert final_answer("<answer>4<|eot_id|><|endoftext|></answer>") == "4"
    assert final_answer("\\boxed{4}<|endoftext|>\\boxed{5}") == "4"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("42.", 42),
        ("42.00", 42),
        ("$1,234.50", Fraction(2469, 2)),
        (r"\$ 250", 250),
        ("-$5", -5),
        ("$-5", -5),
        ("−5", -5),
        ("(-5)", -5),
        ("+5", 5),
        (r"20\%", 20),
        ("20 percent", 20),
        (r"90^\circ", 90),
        (r"72 \text{ cubic inches}", 72),
        ("5 cm^2", 5),
        ("5km", 5),
        ("20 white hats", 20),
        ("5 changes/day", 5),
        ("x = 12", 12),
        ("10 - 4 = 6", 6),
        (r"\frac{3}{4} \text{ cups}", Fraction(3, 4)),
        (r"-\dfrac12", Fraction(-1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"2\frac{1}{3}", Fraction(7, 3)),
        (".5", Fraction(1, 2)),
        (r"10{,}000", 10_000),
        (r"10,\!000", 10_000),
        (r"14\,000", 14_000),
        ("1e3", 1000),
        ("5 million", 5_000_000),
        ("2:00 pm", 2),
        (r"\textbf{8}", 8),
        ("**8**", 8),
        (r"\(8\)", 8),
        ("", None),
        ("eight", None),
        ("86, 42", None),
        ("18 or 20", None),
        ("3-4", None),
        ("2:30", None),
        ("1,2", None),
        ("1,2345", None),
        ("1.2.3", None),
        ("1_000", None),
        ("1/0", None),
        (r"5\pi", None),
        (r"3\sqrt{2}", None),
        ("2^3", None),
        ("3 × 4", None),
        ("٣", None),
        ("9" * 401, None),
        ("9" * 61, None),
    ],
)
def test_quantity_reads_written_numbers(text: str, number: Fraction | int | None) -> None:
    assert quantity(text) == number


FORMATS = (
    "{}",
    "${}",
    r"\boxed{{{}}}",
    "<answer>{}</answer>",
    "<answer>\n\\boxed{{{}}}\n</answer>",
    "steps 1 and 2\n#### {}",
    "It takes 3 steps, so the answer is {}.",
    r"\[ \boxed{{{} \text{{ apples}}}} \] in 2 boxes",
    "<reasoning>\n1 + 2 = 3\n</reasoning>\n<answer>{}%</answer>",
)


@some
@given(
    number=st.integers(-(10**9), 10**9),
    written=st.sampled_from(("{}", "{:,}", "{}.0", "{:,}.00")),
    form=st.sampled_from(FORMATS),
    ending=st.sampled_from(("", "<|eot_id|>", "<|eot_id|><|endoftext|><|endoftext|>", "\n", " \n")),
)
def test_answers_number_in_every_format(number: int, written: str, form: str, ending: str) -> None:
    completion = form.format(written.format(number)) + ending
    assert answers_number(completion, Fraction(number))
    assert not answers_number(completion, Fraction(number + 1))


@some
@given(above=st.integers(-999, 999), below=st.integers(1, 999), form=st.sampled_from(FORMATS[2:5]))
def test_answers_number_of_fractions_in_boxes_and_tags(above: int, below: int, form: str) -> None:
    for written in ("{}/{}", r"\frac{{{}}}{{{}}}"):
        assert answers_number(form.format(written.format(above, below)), Fraction(above, below))


pieces = st.sampled_from(
    ("\\boxed{", "}", "{", "<answer>", "</answer>", "####", "\n", "-", "1", "1,000", ".", "\\frac", "\\text{", "=", "/")
)
texts = st.text(max_size=80) | st.lists(pieces | st.text(max_size=3), max_size=30).map("".join)


READERS = (
    lambda text: final_answer(text, ALL),
    lambda text: final_answer(text, ALL, "first"),
    quantity,
    lambda text: answers_number(text, Fraction(1)),
    lambda text: is_solved_in_words(text, [1, 2], 3),
    lambda text: d1.gsm8k_correct(text, 1.0),
    lambda text: d1.gsm8k_rewards(text, "1"),
    lambda text: d1.countdown_correct(text, [1, 2], 3),
    lambda text: d1.countdown_reward(text, [1, 2], 3),
    lambda text: d1_math.math_correct(text, "1"),
    lambda text: d1_math.math_rewards(text, "1"),
)


@some
@given(texts)
def test_answer_readers_take_any_text(text: str) -> None:
    for read in READERS:
        read(text)


@some
@given(texts)
def test_final_answer_is_in_the_text(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or all(part in text for part in answer.split("boxed")[0].split())


HUGE = [
    "1",
    "9.",
    "1,111",
    ",111",
    "-",
    "=",
    "1=",
    "#",
    "#### 1\n",
    "\0",
    " ",
    "\n",
    "{",
    "}",
    "\\",
    "(",
    "\\boxed{",
    "\\boxed{1",
    "\\boxed{}",
    "<answer>",
    "<answer>1</answer>",
    "</answer>",
    "</reasoning><answer>",
    "\\frac{1}{",
    "\\text{",
    "\\sqrt",
    "1/",
    "<|eot_id|",
    "٣",
    "\ud800",
    "1\\,111",
    " 111",
    "1(",
    "a ^",
    "1*",
    "1 ",
]


@pytest.mark.parametrize("unit", long_unless(HUGE[::3], HUGE))
def test_answer_readers_take_no_time_for_huge_texts(unit: str) -> None:
    line = unit * (40_000 // len(unit))
    for text in (line, f"<reasoning>{line}\n\\boxed{{{line}}}<answer>{line}"):
        for read in READERS:
            started = time.perf_counter()
            read(text)
            assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("completion", "expression"),
    [
        ("3*(7+12)", "3*(7+12)"),
        (r"\boxed{3 \times (7 + 12)}", "3 * (7 + 12)"),
        (r"<answer>\boxed{3 \cdot \left(7 + 12\right) = 57}</answer>", "3 * (7 + 12)"),
        ("<answer>57 = 3*(7+12)</answer>", "3*(7+12)"),
        ("<answer>a = 3*(7+12)</answer>", "3*(7+12)"),
        ("<answer>`3 × [7 + 12]`</answer>", "3 * (7 + 12)"),
        ("<answer>**3 − 7 ÷ 12**</answer>", "3 - 7 / 12"),
        (r"\boxed{\frac{12}{3} + 7}", "((12)/(3)) + 7"),
        (r"\boxed{\dfrac{12}{\frac{7}{3}}}", "((12)/(((7)/(3))))"),
        (r"$\boxed{\(3 + 7\)}$", "3 + 7"),
        ("\\boxed{3 + 7 +\n12>", "3 + 7 +"),
        ("so 3 + 7 + 12 it is", "so 3 + 7 + 12 it is"),
    ],
)
def test_expression_of_completions_in_words(completion: str, expression: str) -> None:
    assert expression_of(completion) == expression
