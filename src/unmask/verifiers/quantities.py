"""Reading a written quantity as an exact number: "$1,234.50", "\\frac{3}{4} \\text{ cups}", "-7 %", "x = 12"."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from unmask.errors import UserError
from unmask.verifiers.answers import DECLARED, LONGEST_ANSWER, final_answer
from unmask.verifiers.numerals import NUMBER, SCALE, SYMBOLIC, plain

_LONGEST_NUMBER = 60  # characters
_LARGEST_POWER = 60  # of ten
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_EQUALS = re.compile(r"=|≈|\\approx")


def quantity(text: str) -> Fraction | None:
    """The one number that a text states, exactly; None if it states none, several, or one with symbols such as π.

    Currency, per cent, degrees, units and thousands separators are ignored; of an equation the last side counts.

        quantity("$1,234.50")  # Fraction(2469, 2)
        quantity("12 or 13")   # None
    """
    if len(text) > LONGEST_ANSWER:
        return None
    stated = _EQUALS.split(plain(text))[-1]
    if SYMBOLIC.search(stated):
        return None
    found = list(NUMBER.finditer(stated))
    if not found or any(len(match.group()) > _LONGEST_NUMBER for match in found):
        return None
    value = _combined(stated, found)
    if value is None:
        return None
    before = stated[: found[0].start()]
    after = SCALE.match(stated, found[-1].end())
    value *= _SCALES[after.group(1).lower()] if after else 1
    return -value if re.search(r"(?<![\w}])- ?$", before) else value


def _combined(text: str, found: list[re.Match[str]]) -> Fraction | None:
    """The value of one number, of a fraction a/b, or of a mixed number w a/b."""
    between = [text[left.end() : right.start()] for left, right in pairwise(found)]
    values = [_value(match) for match in found]
    match [gap.strip() for gap in between]:
        case []:
            return values[0]
        case ["/"] if values[1] != 0:
            return values[0] / values[1]
        case ["", "/"] if values[2] != 0 and all(value.denominator == 1 for value in values):
            return values[0] + values[1] / values[2]
        case _:
            return None


def _value(number: re.Match[str]) -> Fraction:
    digits = ((number["whole"] or "0") + number["part"]).replace(",", "").removesuffix(".")
    power = int(number["power"][1:]) if number["power"] else 0
    # No answer is that large; the exact value would have as many digits.
    power = max(-_LARGEST_POWER, min(power, _LARGEST_POWER))
    return Fraction(digits) * Fraction(10) ** power


def answers_number(completion: str, wanted: Fraction) -> bool:
    """Whether a completion's answer, or its last number where it declares none, equals the wanted number."""
    answer = final_answer(completion, (*DECLARED, "number"))
    return answer is not None and quantity(answer) == wanted


def reference_number(answer: str) -> Fraction:
    """The number of a reference answer: alone, behind "####", or in a box. Raises UserError where there is none."""
    stated = final_answer(answer, ("hashes", "boxed"))
    value = quantity(answer.split("####")[-1] if stated is None else stated)
    if value is None:
        raise UserError(f"answer ends in {answer[-40:]!r}; end it in a number, behind #### if there is more")
    return value
