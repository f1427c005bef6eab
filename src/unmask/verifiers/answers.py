"""Extracting a completion's final answer: <answer> tags, \\boxed{...}, "#### number", or the last number."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator

LONGEST_ANSWER = 400  # characters; what is longer is no final answer

_END = re.compile(r"<\|(?:eot_id|endoftext|end_of_text|eom_id|im_end|role_end|eos|end|return)\|>|</s>|<eos>")
_BRACE = re.compile(r"\\[\\{}]|[{}]")  # an escaped brace is text
_BOX = re.compile(r"\\?(?:boxed|fbox) {0,3}\{")  # models drop the backslash now and then
_TAG = re.compile(r"<(/?)answer(?![a-z]) *>?", re.IGNORECASE)
_OTHER_TAG = re.compile(r"</|<\|")
_HASHES = re.compile(r"####[ \t]{0,9}([-+]?\$?[0-9][0-9,]{0,60}(?:\.[0-9]{0,60})?%?)[ \t.]{0,9}$", re.MULTILINE)
NUMBER = re.compile(
    # Thousands in groups first; a digit glued to a word, as in x_1 or A4, is no number.
    r"(?<![A-Za-z0-9_.])(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?"
    r"(?P<part>(?(whole)\.?[0-9]*|\.[0-9]+))(?P<power>[eE][-+]?[0-9]{1,3}(?![A-Za-z0-9]))?(?![_.]?[0-9])"
)


def before_end(text: str) -> str:
    """The text before its first special end token such as <|eot_id|> or <|endoftext|>."""
    end = _END.search(text)
    return text[: end.start()] if end else text


def boxed(text: str, which: str = "last") -> str | None:
    """The content of the last (or "first") non-empty \\boxed{...}, braces nested; None without one.

    A box that never closes, as in a truncated completion, ends with its line.

        boxed(r"so \\boxed{\\frac{1}{2}}.")  # r"\\frac{1}{2}"
    """
    closing = _closing(text)
    starts = [match.end() for match in _BOX.finditer(text)]
    for start in starts if which == "first" else reversed(starts):
        end = closing.get(start)
        if end is None:
            line = text[start : start + LONGEST_ANSWER + 1].split("\n")[0]
            end = start + len(line.rstrip().rstrip(">"))
        content = text[start:end] if end - start <= LONGEST_ANSWER else ""
        content = _OTHER_TAG.split(content)[0]
        if _says_something(content):
            return content.strip()
    return None


def _closing(text: str) -> dict[int, int]:
    """Where each brace that opens is closed: from the place behind the one to the place of the other."""
    opened: list[int] = []
    closing: dict[int, int] = {}
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            closing[opened.pop()] = brace.start()
    return closing


def tagged(text: str, which: str = "last") -> str | None:
    """The content of the last (or "first") non-empty <answer> block, or of the box in it; None without one.

    A block that is not closed ends with the text.
    """
    blocks = list(_blocks(text))
    for block in blocks if which == "first" else reversed(blocks):
        content = boxed(block, which)
        if content is not None:
            return content
        content = _BOX.sub("", _OTHER_TAG.split(block)[0])
        if len(content) <= LONGEST_ANSWER and _says_something(content):
            return content.strip()
    return None


def _blocks(text: str) -> Iterator[str]:
    opened = None
    for tag in _TAG.finditer(text):
        if opened is not None:
            yield text[opened : tag.start()]
        opened = None if tag.group(1) else tag.end()
    if opened is not None:
        yield text[opened:]


def _says_something(content: str) -> bool:
    """False for what stands for an answer still to come: nothing, dots, empty braces."""
    return bool(content.strip(" \t\r\n.…{}?"))


def hashed(text: str, which: str = "last") -> str | None:
    """The number of the last (or "first") line that ends in "#### number", GSM8K's format; None without one."""
    found = _HASHES.findall(text)
    return found[0 if which == "first" else -1] if found else None


def last_number(text: str, which: str = "last") -> str | None:
    """The last number anywhere in the text, with its sign, whatever `which` says; None without one."""
    found = deque(NUMBER.finditer(text), maxlen=1)
    if not found:
        return None
    last = found[0]
    before = text[max(0, last.start() - 5) : last.start()]
    sign = "-" if re.search(r"(?<![\w)\]}])[-−] ?\\?\$?$", before) else ""
    return sign + last.group()


FORMATS: dict[str, Callable[[str, str], str | None]] = {
    "answer": tagged,
    "boxed": boxed,
    "hashes": hashed,
    "number": last_number,
}
DECLARED = ("answer", "boxed", "hashes")


def final_answer(text: str, formats: tuple[str, ...] = DECLARED, which: str = "last") -> str | None:
    """The answer of a completion in the first of `formats` (keys of FORMATS) that it uses; None if it uses none.

    `which` of several is the answer, "last" or "first". Text after an end token is ignored.

        final_answer("<answer>12</answer>")                           # "12"
        final_answer("it is 12 or 13")                                # None: nothing is declared
        final_answer("it is 12 or 13", (*DECLARED, "number"))         # "13"
    """
    text = before_end(text)
    for name in formats:
        answer = FORMATS[name](text, which)
        if answer is not None:
            return answer
    return None
