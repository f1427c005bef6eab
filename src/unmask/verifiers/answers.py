"""Where a completion states its answer: in <answer> tags, in \\boxed{...}, after "####", or as its last number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from unmask.verifiers.numerals import last_quantity, leading_quantity

LONGEST_ANSWER = 400  # characters; what is longer is no final answer

_END = re.compile(r"<\|(?:eot_id|endoftext|end_of_text|eom_id|im_end|role_end|eos|end|return)\|>|</s>|<eos>")
_BRACE = re.compile(r"\\[\\{}]|[{}]")  # an escaped brace is text
_BOX = re.compile(r"\\?(?:boxed|fbox) {0,3}\{")  # models drop the backslash now and then
_TAG = re.compile(r"<(/?)answer(?![a-z]) *>?", re.IGNORECASE)
_OTHER_TAG = re.compile(r"</|<\|")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]{0,9}([^\n]{1,400})$", re.MULTILINE)


def before_end(text: str) -> str:
    """The text before its first end token such as <|eot_id|> or <|endoftext|>."""
    end = _END.search(text)
    return text[: end.start()] if end else text


def boxed(text: str, which: str = "last") -> str | None:
    """The content of the last (or "first") box that holds anything, braces nested; None without one.

    A box that never closes, as in a completion that was cut off, ends with its line.
    """
    contents = [content for _, _, content in box_spans(text)]
    return contents[0 if which == "first" else -1] if contents else None


def box_spans(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of each box that says something, by their starts; of boxes in boxes, each."""
    closing, spans = _closing(text), []
    for box in _BOX.finditer(text):
        start, end = box.end(), closing.get(box.end())
        behind = 1
        if end is None:
            line = text[start : start + LONGEST_ANSWER + 1].split("\n")[0]
            end, behind = start + len(line.rstrip().rstrip(">")), 0
        content = text[start:end] if end - start <= LONGEST_ANSWER else ""
        content = _OTHER_TAG.split(content)[0]
        if _says_something(content):
            spans.append((box.start(), end + behind, content.strip()))
    return spans


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


def tagged(text: str, which: str = "last", box: Callable[[str, str], str | None] = boxed) -> str | None:
    """The content of the last (or "first") <answer> block that holds anything, or of the box in it.

    A block that is not closed ends with the text.
    """
    blocks = list(_blocks(text))
    for block in blocks if which == "first" else reversed(blocks):
        content = box(block, which)
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
    """The number of the last (or "first") line that says "#### number", as GSM8K writes it; headings are none."""
    lines = _HASHES.findall(text)
    for line in lines if which == "first" else reversed(lines):
        answer = leading_quantity(line)
        if answer is not None:
            return answer
    return None


def last_number(text: str, which: str = "last") -> str | None:
    """The last number anywhere, whatever `which` says."""
    return last_quantity(text)


FORMATS: dict[str, Callable[[str, str], str | None]] = {
    "answer": tagged,
    "boxed": boxed,
    "hashes": hashed,
    "number": last_number,
}
DECLARED = ("answer", "boxed", "hashes")


def final_answer(text: str, formats: tuple[str, ...] = DECLARED, which: str = "last") -> str | None:
    """What a completion gives as its answer, in the first of the formats that it uses; None if it uses none."""
    text = before_end(text)
    for name in formats:
        answer = FORMATS[name](text, which)
        if answer is not None:
            return answer
    return None
