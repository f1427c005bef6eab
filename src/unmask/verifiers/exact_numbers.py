"""Equality of two numbers in LaTeX: exactly where both are exact, to a relative error where one is a decimal.

math-verify rounds to six places and drops what is small, so that 2^{-60} is 2^{-61} to it. For the process of
`latex_server`, which imports this file by its place: nothing of unmask may be imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sympy import Basic, Float, Integral, Limit, Mul, Product, Rational, Sum, UnevaluatedExpr, expand, sympify
from sympy.core.evalf import PrecisionExhausted
from sympy.matrices.matrixbase import MatrixBase

RELATIVE_ERROR = 1e-5  # six places of a number from 0.1 to 1 are that exact
_DIGITS = 400  # that a difference of exact numbers is computed to
_PER_CENT = UnevaluatedExpr(Rational(1, 100))
_APPROXIMATED = (Integral, Limit, Product, Sum)

NumericComparison = Callable[[Any, Any, int, int], bool]


def exact_comparison(rounded: NumericComparison) -> NumericComparison:
    """A comparison that holds where `rounded` (math-verify's own) does and the numbers do not differ after all.

    A number in per cent may stand for itself, as before, or for its hundredth: 12.5\\% is 12.5 as 28\\% is 28.
    """

    def same(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
        plain_a, plain_b = _without_per_cent(a), _without_per_cent(b)
        if (plain_a is None) != (plain_b is None):
            pair = (a if plain_a is None else plain_a, b if plain_b is None else plain_b)
            if rounded(*pair, float_rounding, numeric_precision) and not _differ(*pair):
                return True
        return bool(rounded(a, b, float_rounding, numeric_precision)) and not _differ(a, b)

    return same


def _without_per_cent(value: Any) -> Any | None:
    """The number before a sign of per cent; None where there is no such sign."""
    if isinstance(value, Mul) and _PER_CENT in value.args:
        return Mul(*(factor for factor in value.args if factor != _PER_CENT))
    return None


def _differ(a: Any, b: Any) -> bool:
    """Whether two expressions are surely not equal, though nearly."""
    if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
        return False  # compared entry by entry
    try:
        a, b = sympify(a).doit(), sympify(b).doit()
        if a.has(*_APPROXIMATED) or b.has(*_APPROXIMATED):
            return False
        if a.has(Float) or b.has(Float):
            return any(_far(left, right) for left, right in _coefficients(a, b))
        difference = expand(a - b)
        terms = difference.as_coefficients_dict()
        if len(terms) == 1 and isinstance(difference, Basic) and difference.free_symbols:
            return all(number != 0 for number in terms.values())
        return bool(difference.is_number) and _is_not_zero(difference)
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        return False


def _is_not_zero(number: Any) -> bool:
    if number.is_Rational:
        return bool(number != 0)
    try:
        return bool(number.evalf(2, maxn=_DIGITS, strict=True) != 0)
    except PrecisionExhausted:
        return False  # as far as one can see


def _coefficients(a: Any, b: Any) -> list[tuple[complex, complex]]:
    """The numbers of two sums, by the terms that they stand before."""
    terms = [_numbers(expand(value)) for value in (a, b)]
    return [(terms[0].get(name, 0), terms[1].get(name, 0)) for name in terms[0].keys() | terms[1].keys()]


def _numbers(value: Any) -> dict[Any, complex]:
    numbers: dict[Any, complex] = {}
    for term in value.as_ordered_terms():
        number, rest = term.as_independent(*value.free_symbols, as_Add=False)
        numbers[rest] = numbers.get(rest, 0) + complex(number.evalf(17))
    return numbers


def _far(left: complex, right: complex) -> bool:
    return abs(left - right) > RELATIVE_ERROR * max(abs(left), abs(right))
