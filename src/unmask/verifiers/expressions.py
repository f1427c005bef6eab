"""Arithmetic expressions as trees: parsed without eval, evaluated exactly, printed with few parentheses."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from math import comb
from random import Random

Rational = int | Fraction
Expression = int | tuple[str, "Expression", "Expression"]

LONGEST_TEXT = 200
OPERATIONS: dict[str, Callable[[Rational, Rational], Rational]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": Fraction,
}
_SYMBOLS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_ALLOWED = re.compile(rf"[0-9+\-*/() ]{{1,{LONGEST_TEXT}}}")
# Characters that look like a sign and mean it. Digits of other scripts, superscripts and vulgar fractions are none.
_TWINS = {
    "+": "\u2795\ufe62\u2064",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u02d7\u2796\ufe63",
    "*": "\u00d7\u00b7\u22c5\u2219\u2022\u2217\u204e\u22c6\u25cf\u2715\u2716\u2a2f\u2a09\u30fb\ufe61\u2062",
    "/": "\u00f7\u2215\u2044\u2797\u29f8",
    "(": "\ufe59",
    ")": "\ufe5a",
    "=": "\ufe66",
    " ": "\u00a0\u2002\u2003\u2005\u2007\u2009\u200a\u202f\u3000",
    "": "\u200b\u200c\u200d\u2060\ufeff\ufe0e\ufe0f",
}
_ASCII = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
    | {chr(0x1D7CE + place): str(place % 10) for place in range(50)}  # bold, double-struck, ... digits
    | {twin: sign for sign, twins in _TWINS.items() for twin in twins}
)
_BRACKETS = str.maketrans("[]{}", "()()")
_LATEX_SIGNS = {
    **dict.fromkeys(("times", "cdot", "cdotp", "centerdot", "ast", "star", "bullet"), "*"),
    **dict.fromkeys(("div", "slash"), "/"),
    **dict.fromkeys(("lparen", "lbrack"), "("),
    **dict.fromkeys(("rparen", "rbrack"), ")"),
}
_LATEX_SIGN = re.compile(r"\\([A-Za-z]+)")
_LATEX_SPACE = re.compile(r"\\(?:[ ,;:]|q?quad(?![A-Za-z]))|~")
_LATEX_NOISE = re.compile(
    r"\{\}|\\(?:[()\[\]!]|(?:left|right|[Bb]igg?[lrm]?|displaystyle)(?![A-Za-z]))|\\?\$|\\(?=[-+*/=])"
)
_WRAPPED = re.compile(r"\\(?:text|math)[a-z]* ?\{([^{}]*)\}|\{\s*([-+*/])\s*\}")
_PART = r"\s*(?:\{([^{}]*)\}|([0-9]))"
_FRACTION = re.compile(rf"\\[dtc]?frac(?![A-Za-z]){_PART}{_PART}")
_LETTER_TIMES = re.compile(r"(?<=[0-9)])( {0,9})[xX]( {0,9})(?=[0-9(])")


class InvalidExpression(ValueError):
    """The text is not one expression of integers, + - * / and parentheses, or has no value."""


def parse(text: str) -> Expression:
    """The tree of an expression of integers, + - * / and parentheses: a number, or (symbol, left, right).

    A sign belongs only to a number; spaces are free. Raises InvalidExpression for anything else, and for more than 200
    characters.

        parse("3*(7+12)")  # ("*", 3, ("+", 7, 12))
    """
    text = text.strip()
    # The characters come first: Python's own syntax would take 1_0, 0x10 and names.
    if not _ALLOWED.fullmatch(text):
        raise InvalidExpression("characters that no expression has, or too many")
    try:
        return _tree(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InvalidExpression(f"{text!r} is not an expression") from None


def plain_signs(text: str) -> str:
    """A text with the signs of Unicode and LaTeX replaced by digits, + - * / ( ) and =; what is no sign stays as it is.

    For short texts: the time grows with the square of the length.

        plain_signs(r"3 \\cdot \\frac{6}{2}")  # "3 * ((6)/(2))"
    """
    text = _LATEX_NOISE.sub("", _LATEX_SPACE.sub(" ", text.translate(_ASCII)))
    text = _LATEX_SIGN.sub(lambda sign: _LATEX_SIGNS.get(sign[1], sign.group()), text)
    text, fractions = _WRAPPED.sub(lambda part: part[1] or part[2] or "", text), 1
    while fractions:
        text, fractions = _FRACTION.subn(lambda part: f"(({part[1] or part[2]})/({part[3] or part[4]}))", text)
    return _LETTER_TIMES.sub(r"\1*\2", text.translate(_BRACKETS))


def _tree(node: ast.expr) -> Expression:
    match node:
        case ast.BinOp(left=left, op=symbol, right=right) if type(symbol) in _SYMBOLS:
            return _SYMBOLS[type(symbol)], _tree(left), _tree(right)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
        case ast.Constant(value=int(number)):
            return number
        case _:
            raise InvalidExpression(type(node).__name__)


def evaluate(expression: Expression) -> Rational:
    """The exact value of a tree. Raises InvalidExpression for a division by zero."""
    if isinstance(expression, int):
        return expression
    symbol, left, right = expression
    try:
        return OPERATIONS[symbol](evaluate(left), evaluate(right))
    except ZeroDivisionError:
        raise InvalidExpression("division by zero") from None


def leaves(expression: Expression) -> list[int]:
    """The numbers of a tree from left to right."""
    if isinstance(expression, int):
        return [expression]
    return leaves(expression[1]) + leaves(expression[2])


def value(text: str) -> Fraction:
    """The exact value of an expression in text. Raises InvalidExpression if it has none."""
    return Fraction(evaluate(parse(text)))


def is_expression(text: str) -> bool:
    """Whether a text is an expression that has a value."""
    try:
        value(text)
    except InvalidExpression:
        return False
    return True


def numbers(text: str) -> list[int]:
    """The numbers of an expression in text from left to right. Raises InvalidExpression if it is none."""
    return leaves(parse(text))


def render(expression: Expression) -> str:
    """The text of a tree, without spaces and with as few parentheses as keep its value."""
    if isinstance(expression, int):
        return str(expression)
    symbol, left, right = expression
    left_text, right_text = render(left), render(right)
    if _binding(left) < _binding(expression):
        left_text = f"({left_text})"
    regroups = symbol in "-/" and _binding(right) == _binding(expression)
    if _binding(right) < _binding(expression) or regroups or right_text.startswith("-"):
        right_text = f"({right_text})"
    return left_text + symbol + right_text


def _binding(expression: Expression) -> int:
    if isinstance(expression, int):
        return 3
    return 2 if expression[0] in "*/" else 1


def random_expression(rng: Random, operands: Sequence[int], symbols: str) -> Expression:
    """A random tree over the operands in their order; every shape and choice of symbols is equally likely."""
    if len(operands) == 1:
        return operands[0]
    cuts = range(1, len(operands))
    ways = [_shapes(cut) * _shapes(len(operands) - cut) for cut in cuts]
    (cut,) = rng.choices(cuts, ways)
    left = random_expression(rng, operands[:cut], symbols)
    return rng.choice(symbols), left, random_expression(rng, operands[cut:], symbols)


@cache
def _shapes(leaf_count: int) -> int:
    """Number of binary trees with so many leaves (Catalan)."""
    return comb(2 * leaf_count - 2, leaf_count - 1) // leaf_count
