"""d1's scorer of MATH-500: string equality after the MATH benchmark's clean-up (arXiv 2103.03874).

Checked item for item on 500 published generations. Rewards as told in the appendix of arXiv 2510.09541: 2 for a right
box, and 0.25 to 1 for tags and box.
"""

from __future__ import annotations

from unmask.verifiers.published.d1 import boxed_or_whole

_REMOVED_FIRST = ("\n", "\\!")
_RENAMED = (("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"))
_REMOVED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


def math_correct(text: str, reference: str) -> bool:
    """Whether the last box, or a text without one, is the reference once both are cleaned up."""
    answer = boxed_or_whole(text)
    try:
        return _clean(answer) == _clean(reference)
    except (IndexError, ValueError):
        return answer == reference


def math_rewards(text: str, reference: str) -> dict[str, float]:
    """Each of the two training rewards by name; d1 adds them up."""
    answer = text.partition("<answer>")[2].partition("</answer>")
    tagged = bool(answer[1])
    boxed = "\\boxed" in (answer[0] if tagged else text)
    right = "\\boxed{" in text and math_correct(text, reference)
    return {"correctness": 2.0 * right, "format": 0.25 + 0.5 * tagged + 0.25 * boxed}


def _clean(text: str) -> str:
    """The benchmark's normal form. Raises ValueError or IndexError where its rules do not apply."""
    for removed in _REMOVED_FIRST:
        text = text.replace(removed, "")
    for old, new in _RENAMED:
        text = text.replace(old, new)
    for removed in _REMOVED:
        text = text.replace(removed, "")
    text = _without_units(text).replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _braced_roots(text).replace(" ", "")
    text = _braced_fractions(text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return _stacked(text)


def _without_units(text: str) -> str:
    """Cut at "\\text{ ", which begins a unit."""
    number, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise ValueError("two units")
    return number


def _braced_roots(text: str) -> str:
    """\\sqrt3 becomes \\sqrt{3}."""
    first, *roots = text.split("\\sqrt")
    return first + "".join("\\sqrt" + (root if root[0] == "{" else f"{{{root[0]}}}{root[1:]}") for root in roots)


def _braced_fractions(text: str) -> str:
    """\\frac12 and \\frac1{2} become \\frac{1}{2}; one that is cut off leaves everything as it is."""
    first, *fractions = text.split("\\frac")
    if any(rest[0] != "{" and len(rest) < 2 for rest in fractions):
        return text
    return first + "".join("\\frac" + _braced_fraction(rest) for rest in fractions)


def _braced_fraction(rest: str) -> str:
    if rest[0] == "{":
        return rest
    below = rest[1:] if rest[1] == "{" else f"{{{rest[1]}}}{rest[2:]}"
    return f"{{{rest[0]}}}{below}"


def _stacked(text: str) -> str:
    """a/b of two integers becomes \\frac{a}{b}."""
    if text.count("/") != 1:
        return text
    above, below = (int(part) for part in text.split("/"))
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
