"""Readers of d1's answers that take time in proportion to the text give what the published patterns give."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.verifiers.published import d1_sudoku

END = r"(?:<\|eot_id\|>|<\|endoftext\|>|{})"
PLACES = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<answer>.*?```\s*([\d\s]+)```",
        r"<answer>(.*?)" + END.format("</answer>"),
        r"</answer>(.*?)" + END.format("$"),
        r"([0-9]{16})\s*</answer>",
        r"\b([0-9]{16})\b",
    )
]
CLOSED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
PIECES = [
    "<answer>", "</answer>", "```", "`", " ", "\n", "1", "1234341221434321", "12343412", "x", "<|eot_id|>",
    "<|endoftext|>", "٣", "_",
]  # fmt: skip


def extracted(text):
    for place in PLACES:
        found = place.search(text)
        if found is not None and found.group(1).strip():
            return "".join(found.group(1).split())[:16].ljust(16, "0")
    return ""


def digits(text):
    answers = CLOSED.findall(text)
    return re.sub(r"\D", "", answers[-1])[:16].ljust(16, "0") if answers else ""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_d1_sudoku_reads_what_the_published_patterns_read(text):
    assert d1_sudoku.sudoku_extracted(text) == extracted(text)
    solution = "1234341221434321"
    cells = sum(cell == right for cell, right in zip(digits(text), solution, strict=False))
    assert d1_sudoku.sudoku_reward(text, "0" * 16, solution) == cells / 16


@pytest.mark.parametrize("piece", ["<answer>", "<answer>```", "<answer>``` 1", "</answer>", "1234341221434321 "])
def test_d1_sudoku_reads_long_texts(piece):
    """The published patterns take minutes for some of these."""
    text = piece * (100_000 // len(piece))
    d1_sudoku.sudoku_extracted(text)
    d1_sudoku.sudoku_reward(text, "0" * 16, "1234341221434321")
