"""Patterns of numbers in texts and LaTeX, and the stretch of a text that is one whole quantity."""

from __future__ import annotations

import re
from collections import deque

_THIN = r"(?:\\[,;: ]|~|[\u00a0\u2005\u2007\u2008\u2009\u200a\u202f])"
_THOUSANDS = re.compile(  # "8\,000", "8{,}000", "11,\! 111", "8 000" with a thin or a protected space
    rf"(?<![0-9A-Za-z_.,])[0-9]{{1,3}}(?:(?: ?\{{ ?,? ?\}}(?:\\!)? ?|,?\\! ?|{_THIN} ?)[0-9]{{3}}(?![0-9]))+"
)
_SPACED = re.compile(r"(?<![0-9A-Za-z_.,/^] )(?<![0-9A-Za-z_.,/^])[0-9]{1,3}(?: [0-9]{3}(?![0-9]))+(?! ?[/0-9])")
_ASCII = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2011\u2010\uff0d", "-")
    | dict.fromkeys("\u2044\u2215", "/")
    | {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅛": " 1/8"}
)
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname|emph|underline) ?\{([^{}]*)\}?"
)
_PART = r" ?(?:\{([^{}]*)\}|([0-9]))"
_FRACTION = re.compile(rf"\\[dtc]?frac(?![A-Za-z]){_PART}{_PART}")
_SPACE = re.compile(rf"{_THIN}|\\q?quad(?![A-Za-z])|[\s{{}}]+")
_NOISE = re.compile(
    r"\\!|\\[()\[\]]|\\?[$%€£¥°*`]|\^ ?\{? ?\\circ ?\}?|\\(?:left|right|degree|displaystyle)(?![A-Za-z])"
)
_ARGUMENT = re.compile(r"(?<=[A-Za-z])\((?=[0-9])")  # f(5) is no 5
_PRODUCT = re.compile(  # 2(3) is no 23
    r"(?<=[0-9]) ?\((?=[-0-9.])|\) ?(?=[0-9(])|(?<=[0-9)])(?:\*{1,2}| \*{1,2} )\\?\$?(?=-?\.?[0-9]|\()"
)
_BRACKET = re.compile(r"[()\[\]]")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z)]) ?\^ ?\{?-?[0-9]{1,2}\}?")
_CLOCK = re.compile(r"\b([0-9]{1,2}):00\b(?!:)")
NUMBER = re.compile(
    # Thousands in groups first; a digit glued to a word, as in x_1 or A4, is no number.
    r"(?<![A-Za-z0-9_.])(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?"
    r"(?P<part>(?(whole)\.?[0-9]*|\.[0-9]+))(?P<power>[eE][-+]?[0-9]{1,3}(?![A-Za-z0-9]))?(?![_.]?[0-9])"
)
SCALE = re.compile(r" ?(thousand|million|billion|trillion)\b", re.IGNORECASE)
SYMBOLIC = re.compile(r"\\(?:pi|sqrt|times|cdot|div|log|ln|sin|cos|tan|pm|infty)(?![A-Za-z])|[π√^!×·÷±∞]")
_SYMBOL_AFTER = re.compile(r" ?(?:\\(?:pi|sqrt|times|cdot|div|pm)(?![A-Za-z])|[π√^×·÷±])")
_SYMBOL_BEFORE = re.compile(r"(?:\\(?:pi|sqrt|times|cdot|div|pm|log|ln|sin|cos|tan)(?: ?[{(])?|[π√^×·÷±])[ {(]{0,2}\Z")
_JOINED = re.compile(r" ?[/+] ?-?|[,:]|\^ ?-?")  # of two numbers that are no two quantities
_MINUS = re.compile(r"(?<![\w)\]}])(?<![0-9)\]}] )- ?\Z")
_HEADING = re.compile(r"\W{0,9}[0-9]{1,3}(?:[.):]\s+[^\s.*$]|(?:st|nd|rd|th)\b)")
_SENTENCE_END = re.compile(r"(?<=[A-Za-z%)])[.!?](?:\s|\Z)")
_LONGEST_CHAIN = 8  # numbers in one quantity; three are right
_LONGEST_LINE = 400  # characters
_NAMED = re.compile(r"\s*(?:[A-Za-z] ?=|(?:the )?(?:final )?answer ?(?:is|[:=]))?\s*[-+~≈]?\s*", re.IGNORECASE)
# "18 dollars a day for 7 days": what the number counts stands between the two, and a word that makes the second one
# a circumstance. "18 or 20" and "5 feet 3 inches" are not the first number.
_CIRCUMSTANCE = re.compile(
    r"[ -]?[A-Za-z][^0-9]*\b(?:for|in|per|at|over|every|each|after|within|during|because|since|if|as|when|with|on)\b"
    r"[^0-9]*"
)
_ALTERNATIVE = re.compile(r"\b(?:or|and|to|plus|minus|times)\b|[,;=+]|/ ?[0-9]")


def plain(text: str) -> str:
    """A text without LaTeX and other marks that do not change its numbers; \\frac{3}{4} is " 3/4 "."""
    text = text.translate(_ASCII).replace("\\$", "$")
    text = joined_digits(text)
    text = _WRAPPED.sub(r" \1 ", text)
    text = _FRACTION.sub(lambda part: f" {part[1] or part[2]}/{part[3] or part[4]} ", text)
    text = _NOISE.sub("", _PRODUCT.sub(" × ", _ARGUMENT.sub("", text)))
    return _CLOCK.sub(r"\1", _UNIT_POWER.sub("", _SPACE.sub(" ", _BRACKET.sub(" ", text))))


def joined_digits(text: str) -> str:
    """A text in which digits grouped by spaces, as in 8\\,000, 8{,}000, 11,\\! 111 or 8 000, stand together."""
    return _SPACED.sub(_digits, _THOUSANDS.sub(_digits, text))


def _digits(grouped: re.Match[str]) -> str:
    return re.sub(r"[^0-9]", "", grouped.group())


def last_quantity(text: str) -> str | None:
    """The last quantity of a text, whole: with sign, fraction, mixed number, power of ten and symbols; None without."""
    text = plain(text)
    found = deque(NUMBER.finditer(text), maxlen=_LONGEST_CHAIN)
    if not found:
        return None
    chain = [found.pop()]
    while found and _belongs(text, found[-1], chain):
        chain.insert(0, found.pop())
    start, end = chain[0].start(), _end(text, chain[-1])
    symbol = _SYMBOL_BEFORE.search(text, max(0, start - 12), start)
    sign = "-" if _MINUS.search(text, max(0, start - 5), start) else ""
    return sign + text[symbol.start() if symbol else start : end].strip()


def _belongs(text: str, number: re.Match[str], chain: list[re.Match[str]]) -> bool:
    """Whether a number is part of the quantity that begins behind it: 3 in 3/4, 1 in 1 1/2, 2 in 2^3."""
    gap = text[number.end() : chain[0].start()]
    if _JOINED.fullmatch(gap):
        return True
    if len(chain) < 2 or gap.strip(" ") or text[chain[0].end() : chain[1].start()].strip() != "/":
        return False
    return number.group().isdigit()


def _end(text: str, number: re.Match[str]) -> int:
    after = SCALE.match(text, number.end()) or _SYMBOL_AFTER.match(text, number.end())
    return after.end() if after else number.end()


def leading_quantity(line: str) -> str | None:
    """The quantity with which a line begins, or all of the line where that is not one quantity; None for a heading."""
    line = _SENTENCE_END.split(line)[0].strip()
    text = plain(line)
    found = list(NUMBER.finditer(text[:_LONGEST_LINE]))
    if not found or _HEADING.match(line) or not _NAMED.fullmatch(text, 0, found[0].start()):
        return None
    chain = [found[0]]
    while len(chain) < len(found) and _goes_on(text, chain[-1], found[len(chain)]):
        chain.append(found[len(chain)])
    if len(chain) == len(found):
        return line
    gap = text[chain[-1].end() : found[len(chain)].start()]
    if not _CIRCUMSTANCE.fullmatch(gap) or _ALTERNATIVE.search(text, chain[-1].end()):
        return line
    return text[: _end(text, chain[-1])].strip()


def _goes_on(text: str, number: re.Match[str], following: re.Match[str]) -> bool:
    return text[number.end() : following.start()].strip() in ("", "/")
