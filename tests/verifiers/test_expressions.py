"""The expression reader: exact values, and nothing else gets through."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from random import Random
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.verifiers.expressions import (
    Expression,
    InvalidExpression,
    evaluate,
    leaves,
    numbers,
    parse,
    plain_signs,
    random_expression,
    render,
    value,
)

TREES: st.SearchStrategy[Expression] = st.recursive(
    st.integers(-20, 20), lambda parts: st.tuples(st.sampled_from("+-*/"), parts, parts), max_leaves=8
)

NATURAL: st.SearchStrategy[Expression] = st.recursive(
    st.integers(0, 99), lambda parts: st.tuples(st.sampled_from("+-*/"), parts, parts), max_leaves=6
)

HOSTILE = [
    "",
    " ",
    "__import__('os').system('x')",
    "9**9**9",
    "9**9",
    "7//2",
    "1_0",
    "0x10",
    "1e3",
    "1.5",
    "1j",
    "007",
    "1(2)",
    "(1)(2)",
    "()",
    "1,2",
    "1 2",
    "1+",
    "1=1",
    "+1",
    "-(1+2)",
    "--1",
    "- -1",
    "1+\n2",
    "1#2",
    "1 if 1 else 2",
    "True",
    "[1]",
    "lambda:1",
    "1\x002",
    "1\x00",
    "\ud800",
    "٣+1",  # an Arabic digit, which int() would take
    "1\uff0b2",
    "²",
    "1/0",
    "1/(2-2)",
    "(" * 100_000 + "1" + ")" * 100_000,
    "(" * 99 + "1" + ")" * 98,
    "1" * 201,
    "9" * 10_000_000,
    "1+" * 1_000_000 + "1",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", Fraction(7)),
        (" 3 + 4 ", Fraction(7)),
        ("2+3*4", Fraction(14)),
        ("(2+3)*4", Fraction(20)),
        ("10-4-3", Fraction(3)),
        ("1/3", Fraction(1, 3)),
        ("8/(3-8/3)", Fraction(24)),
        ("12/4/3", Fraction(1)),
        ("-3+5", Fraction(2)),
        ("2*(-4)", Fraction(-8)),
        ("1" * 200, Fraction(int("1" * 200))),
        ("(" * 99 + "1" + ")" * 99, Fraction(1)),
    ],
)
def test_value_is_exact(text: str, expected: Fraction) -> None:
    result = value(text)
    assert result == expected
    assert isinstance(result, Fraction)


def test_numbers_from_left_to_right() -> None:
    assert numbers("3*(12-7)/-5") == [3, 12, 7, -5]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_parse_refuses_hostile_text_quickly(text: str) -> None:
    start = perf_counter()
    with pytest.raises(InvalidExpression):
        value(text)
    assert perf_counter() - start < 0.5


@given(st.text(alphabet="0123456789+-*/() _.,=x\n\x00", max_size=30))
@settings(deadline=None, max_examples=300)
def test_value_of_any_text_or_refusal(text: str) -> None:
    try:
        result = value(text)
    except InvalidExpression:
        return
    # What our reader takes, Python's own arithmetic must agree on.
    assert result == pytest.approx(eval(text.strip()))  # noqa: S307


@given(TREES)
@settings(deadline=None)
def test_render_keeps_value_and_numbers(tree: Expression) -> None:
    text = render(tree)
    assert numbers(text) == leaves(tree)
    assert render(parse(text)) == text
    try:
        expected = evaluate(tree)
    except InvalidExpression:
        with pytest.raises(InvalidExpression):
            value(text)
    else:
        assert value(text) == expected


@given(TREES)
@settings(deadline=None)
def test_render_has_no_superfluous_parentheses(tree: Expression) -> None:
    text = render(tree)
    opened: list[int] = []
    for place, character in enumerate(text):
        if character == "(":
            opened.append(place)
        elif character == ")":
            start = opened.pop()
            if text[start + 1] == "-":
                continue  # kept: no two signs in a row
            bare = text[:start] + text[start + 1 : place] + text[place + 1 :]
            assert parse(bare) != parse(text)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (("-", 1, ("-", 2, 3)), "1-(2-3)"),
        (("-", ("-", 1, 2), 3), "1-2-3"),
        (("+", 1, ("-", 2, 3)), "1+2-3"),
        (("/", 8, ("*", 2, 2)), "8/(2*2)"),
        (("*", ("+", 1, 2), 3), "(1+2)*3"),
        (("*", 2, -4), "2*(-4)"),
        (("+", 2, ("*", -4, 5)), "2+(-4*5)"),
        (("*", -4, 5), "-4*5"),
    ],
)
def test_render_form(tree: Expression, text: str) -> None:
    assert render(tree) == text


def test_random_expression_is_fair() -> None:
    rng = Random(0)
    drawn = Counter(str(random_expression(rng, [1, 2, 3, 4], "+*")) for _ in range(20_000))
    # 5 shapes of trees with 4 leaves, times 2 signs at 3 places; each 500 times on average.
    assert len(drawn) == 40
    assert min(drawn.values()) > 400
    assert max(drawn.values()) < 600


TWINS = {
    "+": "+＋﹢➕",
    "-": "-−–—‐‑‒―﹣－➖",
    "*": ["*", *"×·⋅∙•∗⁎✕✖⨯＊﹡xX", r"\times ", r"\cdot ", r"\ast ", r"\star ", r"\*", r"\mathbin{*}", r"{\times}"],
    "/": ["/", *"÷∕⁄／➗⧸", r"\div ", r"\slash ", r"{/}"],
    "(": ["(", *"（［﹙[{", r"\left(", r"\bigl(", r"\Big(", r"\left["],
    ")": [")", *"）］﹚]}", r"\right)", r"\bigr)", r"\Big)", r"\right]"],
}
DIGITS = ("0123456789", "０１２３４５６７８９", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", "𝟶𝟷𝟸𝟹𝟺𝟻𝟼𝟽𝟾𝟿")
SPACES = ("", " ", "\u00a0", "\u3000", "\u200b", r"\,", r"\ ", r"\quad ")


@given(NATURAL, st.randoms(use_true_random=False))
@settings(deadline=None, derandomize=True, database=None)
def test_plain_signs_every_twin_of_a_sign_keeps_the_tree(tree: Expression, rng: Random) -> None:
    text = render(tree)
    digits = str.maketrans(DIGITS[0], rng.choice(DIGITS))
    signs = [rng.choice(SPACES) + rng.choice(TWINS[sign]) if sign in TWINS else sign for sign in text.translate(digits)]
    assert parse(plain_signs("".join(signs))) == parse(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("0x  (4+5)", "0*  (4+5)"),
        (r"\frac63", "((6)/(3))"),
        (r"\frac 6 3", "((6)/(3))"),
        (r"\frac{12}3", "((12)/(3))"),
        (r"\dfrac6{12}", "((6)/(12))"),
        (r"\cfrac{6}{3}", "((6)/(3))"),
        (r"\tfrac{6}{\frac63}", "((6)/(((6)/(3))))"),
        (r"\fraction63", r"\fraction63"),
        ("3²", "3²"),
        ("½", "½"),
        ("٣", "٣"),
        ("3xy", "3xy"),
        ("x", "x"),
        (r"\timestable", r"\timestable"),
    ],
)
def test_plain_signs_of_fractions_and_of_what_is_no_sign(text: str, plain: str) -> None:
    assert plain_signs(text) == plain


@pytest.mark.parametrize(
    "unit", ["\\frac", "\\frac1", "{", "\\left(", "\\text{", "x", "1 x", "\u2212", "\\", "$", "{+"]
)
def test_plain_signs_takes_no_time(unit: str) -> None:
    started = perf_counter()
    plain_signs(unit * (400 // len(unit)))
    assert perf_counter() - started < 0.2
