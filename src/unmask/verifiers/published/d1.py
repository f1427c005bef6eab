"""d1's published scorers of GSM8K and Countdown (arXiv 2504.12216), their quirks included.

Written from their behaviour on published generations and on made-up texts, to which they are checked item for item,
so that published numbers can be read. `docs/scoring.md` says where they err. Python's arithmetic stands in for the
`eval` of the original: see `arithmetic`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import log2

_NUMBER = re.compile(r"-?\d+\.?\d*")
_DIGITS = re.compile(r"\d+")
_ARITHMETIC = re.compile(r"[\d+\-*/().\s]+")
_EXPRESSION_SIGNS = "0123456789+-*/() "
_TOLERANCE = 1e-5
_LONGEST_EXPRESSION = 1000  # characters; the original has no limit
_LARGEST_POWER = 10_000  # bits; the original computes for as long as it takes

Value = int | float | complex
_OPERATIONS: dict[type[ast.operator] | type[ast.unaryop], Callable[..., Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


# Evaluation ---------------------------------------------------------------------------------------------------------


def gsm8k_extracted(text: str) -> float | None:
    """The first number of the first box that has one; without such a box, the last number of the first answer."""
    for content in _boxes_on_a_line(text):
        value = _number(content, which=0)
        if value is not None:
            return value
    answer = next(closed_answers(text), None)
    return None if answer is None else _number(answer, which=-1)


def gsm8k_correct(text: str, reference: float | None) -> bool:
    """Whether the number extracted is the reference; None stands for one that d1's loader could not read."""
    return reference is not None and gsm8k_extracted(text) == reference


def gsm8k_reference(answer: str) -> float | None:
    """The number behind "####" (or alone); d1's loader does not read negative ones."""
    found = re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", answer.split("####")[-1].strip().replace(",", ""))
    return float(found.group()) if found else None


def countdown_extracted(text: str) -> str:
    """The last box if it closes, else the whole text; of "expression = number", the first such expression."""
    text = boxed_or_whole(text)
    for latex, sign in ((r"\div", "/"), (r"\times", "*"), (r"\cdot", "*")):
        text = text.replace(latex, sign)
    for equals in re.finditer(r"=[0-9. ]", text):
        place = equals.start()
        if place and text[place - 1] in _EXPRESSION_SIGNS:
            before = text[:place]
            return before[len(before.rstrip(_EXPRESSION_SIGNS)) :].strip()
    return text


def countdown_value(expression: str, numbers: Sequence[int]) -> Value | None:
    """The value of an expression that uses each number once; None for any other."""
    return arithmetic(expression) if _uses(expression, numbers) else None


def countdown_correct(text: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the extracted expression uses each number once and is the target, to 1e-5."""
    return _hits(countdown_value(countdown_extracted(text), numbers), target)


# Rewards in training ------------------------------------------------------------------------------------------------


def gsm8k_rewards(text: str, answer: str) -> dict[str, float]:
    """Each of the five training rewards by name; d1 adds them up."""
    extracted = text.split("<answer>")[-1].split("</answer>")[0].strip()
    return {
        "correctness": 2.0 * (extracted == answer),
        "int": 0.5 * extracted.isdigit(),
        "strict_format": 0.5 * bool(_STRICT.fullmatch(text)),
        "soft_format": 0.5 * _softly_formatted(text),
        "xmlcount": _tag_score(text),
    }


def countdown_reward(text: str, numbers: Sequence[int], target: int) -> float:
    """1 if the last closed answer is right, 0.1 if there is one, else 0."""
    last = deque(closed_answers(text), maxlen=1)
    if not last:
        return 0.0
    return 1.0 if _hits(countdown_value(last[0].strip(), numbers), target) else 0.1


_LINE = r"[^\n]*"
_STRICT = re.compile(rf"<reasoning>\n{_LINE}\n</reasoning>\n<answer>\n{_LINE}\n</answer>\n\n?")


def _softly_formatted(text: str) -> bool:
    """<reasoning> first, its end on the same line, then <answer> and its end on one line, anything behind."""
    if not text.startswith("<reasoning>"):
        return False
    first_line = _line_end(text, 0)
    middles = re.finditer(r"</reasoning>\s*<answer>", text)
    return any(
        middle.start() < first_line and text.find("</answer>", middle.end(), _line_end(text, middle.end())) >= 0
        for middle in middles
    )


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _tag_score(text: str) -> float:
    """An eighth for each tag that stands once and as asked, less a thousandth for each character behind the last."""
    score = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
    if text.count("\n<answer>\n") == 1:
        score += 0.125
        score -= len(text.split("\n</answer>\n")[-1]) * 0.001
    if text.count("\n</answer>") == 1:
        score += 0.125
        score -= (len(text.split("\n</answer>")[-1]) - 1) * 0.001
    return score


# Pieces -------------------------------------------------------------------------------------------------------------


def boxed_or_whole(text: str) -> str:
    """The content of the last \\boxed, braces nested; the whole text where there is none or it does not close."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return text
    start += len("\\boxed{")
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    return text


def arithmetic(text: str) -> Value | None:
    """What Python computes for a text of digits, + - * / ( ) and dots; None where it fails or would take long.

    With floats, ** and //, as the original has them. Nothing is run: the syntax tree is read by a whitelist.
    """
    text = text.strip()
    if len(text) > _LONGEST_EXPRESSION or not _ARITHMETIC.fullmatch(text):
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _OPERATIONS:
            return _OPERATIONS[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=symbol, right=right):
            return _OPERATIONS[type(symbol)](_value(left), _value(right))
        case _:
            raise ValueError(type(node).__name__)


def _power(base: Value, exponent: Value) -> Value:
    if abs(base) > 1 and abs(exponent) * log2(abs(base)) > _LARGEST_POWER:
        raise ValueError("too large")
    result: Value = base**exponent
    return result


def _uses(expression: str, numbers: Sequence[int]) -> bool:
    """Whether the runs of digits are the given numbers, each as often as given."""
    found = _DIGITS.findall(expression)
    return len(found) == len(numbers) and max(map(len, found), default=0) < 100 and (
        sorted(map(int, found)) == sorted(numbers)
    )  # fmt: skip


def _hits(value: Value | None, target: int) -> bool:
    try:
        return value is not None and abs(value - target) < _TOLERANCE
    except OverflowError:
        return False


def _number(text: str, which: int) -> float | None:
    """What float() takes, else the first (0) or last (-1) number in a text; commas end a number."""
    try:
        return float(text.strip())
    except ValueError:
        found = _NUMBER.findall(text)
    return float(found[which]) if found else None


def _boxes_on_a_line(text: str) -> Iterator[str]:
    """What stands between \\boxed{ and the first brace that closes anything on the same line."""
    start = text.find("\\boxed{")
    while start >= 0:
        start += len("\\boxed{")
        end = text.find("}", start)
        if end < 0:
            return
        if text.find("\n", start, end) < 0:
            yield text[start:end]
            start = end
        start = text.find("\\boxed{", start)


def closed_answers(text: str) -> Iterator[str]:
    """What stands between each <answer> and the next </answer>."""
    end = 0
    while True:
        start = text.find("<answer>", end)
        end = text.find("</answer>", start)
        if start < 0 or end < 0:
            return
        yield text[start + len("<answer>") : end]
