"""d1's published scorers of 4x4 Sudoku (arXiv 2504.12216), their quirks included.

Written from their behaviour on published generations, to which they are checked item for item, so that published
numbers can be read. They score cells against the one solution on record, not puzzles against the rules; a puzzle may
have other solutions. `docs/scoring.md` says where they err.
"""

from __future__ import annotations

import re
from collections import deque

from unmask.verifiers.published import d1

CELLS = 16
_END = r"(?:<\|eot_id\|>|<\|endoftext\|>|{})"
# Where an answer is looked for, in this order: behind the first of a tag, and the first place that holds text is read.
_PLACES = tuple(
    (tag, re.compile(pattern, re.DOTALL))
    for tag, pattern in (
        ("<answer>", r".*?```([\d\s]++)```"),
        ("<answer>", r"(.*?)" + _END.format("</answer>")),
        ("</answer>", r"(.*?)" + _END.format("$")),
        ("", r".*?([0-9]{16})\s*</answer>"),
        ("", r".*?\b([0-9]{16})\b"),
    )
)


def sudoku_extracted(text: str) -> str:
    """The answer that d1's evaluation reads, blanks removed, cut or filled with 0 to 16 characters; "" without one.

    Letters count as characters, and are wrong cells.
    """
    for tag, place in _PLACES:
        start = text.find(tag)
        found = place.match(text, start + len(tag)) if start >= 0 else None
        if found is not None and found.group(1).strip():
            return _sixteen("".join(found.group(1).split()))
    return ""


def sudoku_correct_cells(text: str, puzzle: str, solution: str) -> int:
    """The number of empty cells of the puzzle that the evaluated answer fills as in the solution on record."""
    return _matches(sudoku_extracted(text), puzzle, solution)


def sudoku_reward(text: str, puzzle: str, solution: str) -> float:
    """d1's training reward: the share of empty cells filled as on record by the digits of the last closed answer."""
    last = deque(d1.closed_answers(text), maxlen=1)
    digits = _sixteen(re.sub(r"\D", "", last[0])) if last else ""
    return _matches(digits, puzzle, solution) / max(1, puzzle.count("0"))


def _sixteen(characters: str) -> str:
    return characters[:CELLS].ljust(CELLS, "0")


def _matches(grid: str, puzzle: str, solution: str) -> int:
    cells = zip(grid, puzzle, solution, strict=False)  # of no answer, none
    return sum(given == "0" and cell == right for cell, given, right in cells)
