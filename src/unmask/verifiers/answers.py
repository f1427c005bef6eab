"""Extracting a completion's final answer: <answer> tags, \\boxed{...}, "#### number", or the last number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from unmask.verifiers.numerals import last_quantity, leading_quantity

LONGEST_ANSWER = 400  # characters; what is longer is no final answer

# Marks with which the tokenizers that are around end a turn or a text.
END_MARKS = (
    *("<|eot_id|>", "<|im_end|>", "<|role_end|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|return|>"),
    *("<end_of_turn>", "<|endofturn|>", "<|eom_id|>", "</s>", "<|end_of_turn|>", "<｜end▁of▁sentence｜>"),
    *("<|eos|>", "<eos>"),
)

_END = re.compile("|".join(map(re.escape, END_MARKS)))
_BRACE = re.compile(r"\\[\\{}]|[{}]")  # an escaped brace is text
_BOX = re.compile(r"\\?(?:boxed|fbox) {0,3}\{")  # models drop the backslash now and then
_TAG = re.compile(r"<(/?)answer(?![a-z]) *>?", re.IGNORECASE)
_OTHER_TAG = re.compile(r"</|<\|")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]{0,9}([^\n]{1,400})$", re.MULTILINE)


def before_end(text: str) -> str:
    """The text before its first special end token such as <|eot_id|> or <|endoftext|>."""
    end = _END.search(text)
    return text[: end.start()] if end else text


def boxed(text: str, which: str = "last") -> str | None:
    """The content of the last (or "first") non-empty \\boxed{...}, braces nested; None without one.

    A box that never closes, as in a truncated completion, ends with its line.

        boxed(r"so \\boxed{\\frac{1}{2}}.")  # r"\\frac{1}{2}"
    """
    contents = [content for _, _, content in box_spans(text)]
    return contents[0 if which == "first" else -1] if contents else None


def box_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of each non-empty box, nested ones included, by their starts."""
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
    """The content of the last (or "first") non-empty <answer> block, or of what `box` reads in it; None without one.

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
    """The quantity of the last (or "first") line "#### quantity", GSM8K's format; None without one.

    A line that states more than one quantity is returned whole; headings such as "#### Step 1" do not count.
    """
    lines = _HASHES.findall(text)
    for line in lines if which == "first" else reversed(lines):
        answer = leading_quantity(line)
        if answer is not None:
            return answer
    return None


def last_number(text: str, which: str = "last") -> str | None:
    """The last quantity anywhere in the text, with its sign, whatever `which` says; None without one."""
    return last_quantity(text)


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
