"""Extracting a completion's answer in LaTeX: tags, boxes, behind "final answer is", or its last formula."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from unmask.verifiers.answers import LONGEST_ANSWER, before_end, box_spans, boxed, hashed, tagged

_MOST_FINALS = 4
_LONGEST_GAP = 80  # characters between two parts of one answer
_DISPLAY = r"\{(?:align|equation|gather|eqnarray|multline)\*?\}"
_DELIMITER = re.compile(rf"\\\\|\\[$()\[\]]|\$\$?|\\begin(?={_DISPLAY})|\\end(?={_DISPLAY})")
_CLOSES = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]", r"\begin": r"\end"}
_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname) ?\{[^{}]*\}"
_WRAPPED = re.compile(
    r"\\(?:text|math)[a-z]{0,6} ?\{([^{}]*|\\(?:text|math)[a-z]{0,6} ?\{[^{}]*\})\}|\$([^$]+)\$|\\\(([^$]+)\\\)"
)
_ENVIRONMENT = r"\\(?:begin|end) ?\{[^{}]*\}(?:\{[^{}]*\})?"
_NO_WORDS = re.compile(rf"{_TEXT}|{_ENVIRONMENT}")
_SPECIAL = re.compile(r"<\|[^|<>\n]{1,40}\|>")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MATH_WORD = r"(?:sin|cos|tan|log|ln|sqrt|pi|infinity|inf|mod|and|or)(?![A-Za-z])"
# Formulas without delimiters: what has no words in it.
_BARE = re.compile(
    rf"(?<![A-Za-z0-9_\\])(?:{_TEXT}|\\(?:begin|end)\{{[a-z*]+\}}|\\(?:[A-Za-z]+|[^A-Za-z\n])|{_MATH_WORD}"
    r"|(?<![A-Za-z'’])[A-Za-z](?![A-Za-z])|[.:!?](?!\s|\Z)|!(?=[ \t]*[-+*/=^<>])|[^\sA-Za-z\\.:!?]|[ \t])+"
)
_SAYS_MATH = re.compile(r"[0-9]|\\[A-Za-z]{2,}|[π∞√]")
_EDGE = " \t.,:;?*_=`\"'$€£¥~"
_LOOSE = re.compile(r"\A(?:(?:[aAI]|and|or)[ \t,]+)+|(?:[ \t,]+(?:[aAI]|and|or))+\Z")
_SQUARE_METRES = re.compile(r"(?<=[0-9]) ?m[²³]\Z")
_NAME = re.compile(r"(?:\\?[A-Za-z]{1,8}|\\triangle ?[A-Z]{3})(?:_\{?\w{1,9}\}?|'|\([A-Za-z, ]{0,20}\))*")
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")
_PROSE = re.compile(r"[A-Za-z][.!?] |\n\n")
_OTHERWISE = re.compile(
    r"[.:!?=]|\b(?:no|not|wait|instead|rather|actually|but|so|then|thus|hence|is|are)\b", re.IGNORECASE
)
_FINAL = re.compile(r"final answer is", re.IGNORECASE)
_ANSWER = re.compile(r"\banswer\b", re.IGNORECASE)
_MARKS = re.compile(r"\\?\$|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])|[*~\s]+")
_LABEL = re.compile(r"[A-Za-z](?:_\{?\w{1,9}\}?)?(?:\(\w{1,9}\))? ?= ?\Z")
_JOINT = re.compile(r"(?:,|;|&|,? ?\band\b|,? ?\bor\b)\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a text that may be the answer or one of its parts."""

    start: int
    end: int
    text: str
    delimited: bool = True


def stated_formula(completion: str) -> str:
    """The answer of a completion in LaTeX, several boxes or formulas that are one answer joined by commas.

    The first of: <answer> tags, "final answer is" behind the last box, boxes, "####", the last formula, the whole text.

        stated_formula("We get $x = 1$ and $y = 2$.")  # "x = 1, y = 2"
    """
    text = _SPECIAL.sub("\n", before_end(completion))
    return declared_formula(text) or _last_formula(text)


def declared_formula(text: str) -> str | None:
    """The answer in LaTeX that a text declares, by tags, boxes, "final answer is" or "####"; None without one.

    The text is a completion, or a reference that is a whole solution.
    """
    text = before_end(text)
    answer = tagged(text, box=joined_boxes)
    if answer is not None:
        return answer
    boxes = box_spans(text)
    finals = [final.end() for final in _FINAL.finditer(text, boxes[-1][1] if boxes else 0)]
    answers = (_behind(text[end : end + 2 * LONGEST_ANSWER]) for end in reversed(finals[-_MOST_FINALS:]))
    return next(filter(None, answers), None) or joined_boxes(text) or hashed(text)


def _behind(text: str) -> str | None:
    """The formula or number with which a text begins."""
    parts = list(_parts(text))
    if not parts or len(text[: parts[0].start].strip(_EDGE)) > _LONGEST_GAP or "\n\n" in text[: parts[0].start].strip():
        return None
    return _joined(text, parts, 0)


def joined_boxes(text: str, which: str = "last") -> str | None:
    """The content of the last (or "first") box, with that of boxes joined to the last one; None without one.

    joined_boxes(r"\\boxed{4} and \\boxed{5}")  # "4, 5"
    """
    boxes = [Part(start, end, content) for start, end, content in box_spans(text)]
    innermost = [box for box, behind in zip_longest(boxes, boxes[1:]) if behind is None or behind.start >= box.end]
    if which == "first" or not innermost:
        return boxed(text, which)
    return _joined(text, innermost, len(innermost) - 1, words=4)


def unwrapped(text: str) -> str:
    """A text without the \\text{...} (or the like) or the delimiters that enclose all of it; any other as it is."""
    inner = _WRAPPED.fullmatch(text.strip())
    while inner is not None:
        text = next(filter(None, inner.groups()), "")
        inner = _WRAPPED.fullmatch(text.strip())
    return text


def _joined(text: str, parts: list[Part], place: int, words: int = 0) -> str:
    """A part of an answer with those before and behind it that are joined to it, each once."""
    first = last = place
    while first > 0 and _joins(text[parts[first - 1].end : parts[first].start], words):
        first -= 1
    while last + 1 < len(parts) and _joins(text[parts[last].end : parts[last + 1].start], words):
        last += 1
    return ", ".join(dict.fromkeys(part.text for part in parts[first : last + 1]))


def _joins(gap: str, words: int) -> bool:
    """Whether what stands between two parts makes one answer of them: nothing, a comma, "and", "papers and"."""
    if len(gap) > _LONGEST_GAP:
        return False
    plain = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", gap)
    plain = _LABEL.sub("", _MARKS.sub(" ", plain).strip()).strip()
    joint = _JOINT.search(plain)
    if joint is None:
        return not plain and "\n" not in gap
    before = plain[: joint.start()]
    return len(before.split()) <= words and not _OTHERWISE.search(before)


def _last_formula(text: str) -> str:
    parts = list(_parts(text))
    if not parts or _is_whole(text, parts):
        return text
    return _joined(text, parts, _chosen(text, parts))


def _is_whole(text: str, parts: list[Part]) -> bool:
    """Whether a text is nothing but a formula without delimiters, or one with a unit."""
    part = parts[0]
    return len(parts) == 1 and not part.delimited and not text[: part.start].strip(_EDGE) and (
        len(_WORD.findall(text[part.end :])) < 2
    )  # fmt: skip


def _chosen(text: str, parts: list[Part]) -> int:
    """Of the last sentence that has any: the first part behind "answer", the last formula, or the last number."""
    first = last = len(parts) - 1
    while first > 0 and not _ends_sentence(text, parts[first - 1], parts[first]):
        first -= 1
    # A name, as n in "the largest n is 34", is an answer where there is nothing else.
    said = [place for place in range(first, last + 1) if not _NAME.fullmatch(parts[place].text)]
    for place in said:
        start = parts[place - 1].end if place else 0
        if _ANSWER.search(text, max(start, parts[place].start - _LONGEST_GAP), parts[place].start):
            return place
    delimited = [place for place in said if parts[place].delimited]
    return (delimited or said or [last])[-1]


def _ends_sentence(text: str, part: Part, following: Part) -> bool:
    return part.text[-1] in ".!?" or _SENTENCE_END.search(text, part.end, following.start) is not None


def _parts(text: str) -> Iterator[Part]:
    """Formulas between delimiters, and between those what has numbers or LaTeX and no words."""
    done = 0
    for formula in _delimited(text):
        yield from _bare(text, done, formula.start)
        done = formula.end
        if formula.text:
            yield formula
    yield from _bare(text, done, len(text))


def _delimited(text: str) -> Iterator[Part]:
    """Formulas between $ $, $$ $$, \\( \\) and \\[ \\]; empty where one for a line goes over several lines."""
    opened: re.Match[str] | None = None
    for mark in _DELIMITER.finditer(text):
        if opened is not None and mark.group() == _CLOSES[opened.group()]:
            content = text[opened.end() : mark.start()].strip()
            if opened.group() == r"\begin":
                content = _last_row(content)
            if _is_formula(content, opened.group()):
                broken = "\n" in text[opened.end() : mark.start()] and opened.group() in ("$", r"\(")
                yield Part(opened.start(), mark.end(), "" if broken else content)
                opened = None
            else:
                # That was a price: this may be where a formula begins.
                opened = mark if mark.group() in _CLOSES else None
        elif mark.group() in _CLOSES and (opened is None or opened.group() == "$"):
            opened = mark


def _last_row(content: str) -> str:
    """The last line of an environment such as align, as it stands: "&= 12" is 12."""
    rows = [row for row in re.sub(_DISPLAY, "", content, count=1).split(r"\\") if row.strip(_EDGE + "&")]
    return rows[-1].replace("&", " ").strip(_EDGE) if rows else ""


def _is_formula(content: str, delimiter: str) -> bool:
    if not content or len(content) > LONGEST_ANSWER:
        return False
    if "$" not in delimiter:
        return True
    # Two prices enclose words.
    words = len(_WORD.findall(_NO_WORDS.sub("", content)))
    return words < (2 if content[0].isdigit() else 3) and content[-1] not in "+-=*/<" and not _PROSE.search(content)


def _bare(text: str, start: int, end: int) -> Iterator[Part]:
    for run in _BARE.finditer(text, start, end):
        if len(run.group()) > LONGEST_ANSWER or not _SAYS_MATH.search(run.group()):
            continue
        content = _LOOSE.sub("", run.group().strip(_EDGE)).strip(_EDGE)
        if _SAYS_MATH.search(content):
            place = text.index(content, run.start())
            yield Part(place, place + len(content), _SQUARE_METRES.sub("", content), delimited=False)
