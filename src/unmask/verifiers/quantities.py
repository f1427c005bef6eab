"""Reading a written quantity as an exact number: "$1,234.50", "\\frac{3}{4} \\text{ cups}", "-7 %", "x = 12"."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from unmask.errors import UserError
from unmask.verifiers.answers import DECLARED, LONGEST_ANSWER, NUMBER, final_answer

_LONGEST_NUMBER = 60  # characters
_LARGEST_POWER = 60  # of ten
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname) ?\{([^{}]*)\}?")
_FRACTION = re.compile(r"\\[dtc]?frac ?(?:\{([^{}]*)\} ?\{([^{}]*)\}|([0-9]) ?([0-9]))")
_EQUALS = re.compile(r"=|≈|\\approx")
_NOISE = re.compile(r"\\[()\[\],!;: ]|\\?[$%€£¥°*`]|\^ ?\{? ?\\circ ?\}?|\\(?:left|right|quad|degree)|[()\[\]~]")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z)])\^ ?\{?-?[0-9]{1,2}\}?")
_CLOCK = re.compile(r"\b([0-9]{1,2}):00\b(?!:)")
_SYMBOLIC = re.compile(r"\\(?:pi|sqrt|times|cdot|div|log|ln|sin|cos|tan|pm|infty)(?![A-Za-z])|[π√^!×·÷±∞]")


def quantity(text: str) -> Fraction | None:
    """The one number that a text states, exactly; None if it states none, several, or one with symbols such as π.

    Currency, per cent, degrees, units and thousands separators are ignored; of an equation the last side counts.

        quantity("$1,234.50")  # Fraction(2469, 2)
        quantity("12 or 13")   # None
    """
    if len(text) > LONGEST_ANSWER:
        return None
    plain = _plain(text)
    if _SYMBOLIC.search(plain):
        return None
    found = list(NUMBER.finditer(plain))
    if not found or any(len(match.group()) > _LONGEST_NUMBER for match in found):
        return None
    value = _combined(plain, found)
    if value is None:
        return None
    before = plain[: found[0].start()]
    after = re.match(r" ?(thousand|million|billion)\b", plain[found[-1].end() :], re.IGNORECASE)
    value *= _SCALES[after.group(1).lower()] if after else 1
    return -value if re.search(r"(?<![\w}])- ?$", before) else value


def _plain(text: str) -> str:
    """Without LaTeX and other marks that do not change a number."""
    text = text.replace("−", "-").replace("–", "-").replace("{,}", ",").replace("\\$", "$")
    text = _WRAPPED.sub(r" \1 ", text)
    text = _EQUALS.split(text)[-1]
    text = _FRACTION.sub(lambda part: f" {part[1] or part[3]}/{part[2] or part[4]} ", text)
    text = _CLOCK.sub(r"\1", _UNIT_POWER.sub("", text))
    return re.sub(r"[ \t\r\n]+", " ", re.sub(r"[{}]", " ", _NOISE.sub("", text)))


def _combined(plain: str, found: list[re.Match[str]]) -> Fraction | None:
    """The value of one number, of a fraction a/b, or of a mixed number w a/b."""
    between = [plain[left.end() : right.start()] for left, right in pairwise(found)]
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
    """The number of a reference answer, alone or behind "####". Raises UserError where there is none."""
    value = quantity(answer.split("####")[-1])
    if value is None:
        raise UserError(f"answer ends in {answer[-40:]!r}; end it in a number, behind #### if there is more")
    return value
