"""Target: completions into every scorer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from unmask.settings.reader import build
from unmask.tasks import TASKS
from unmask.verifiers import answers, expressions, formulas, numerals, programs, quantities
from unmask.verifiers.published import d1, d1_math, d1_sudoku

_PIECES = [
    "<answer>", "</answer>", "<reasoning>", "</reasoning>", "\\boxed{", "{", "}", "(", ")", "[", "]", "\\frac{1}{2}",
    "\\sqrt", "^", "**", "9**9**9", "1e999", "-", "+", "*", "/", "=", "####", "$", "$$", "\\(", "\\)", "\\[", "\\text{",
    "The answer is ", "0.1", "1/0", "3,000", "1 1/2", "½", "٣", "１２", "²", "%", "\n", " ", "\t", "\\", "\\\\", "\0",
    "```python\n", "```", "~~~", "def f(x):\n", "    return x\n", "'''", '"', "#", ";", ":", ",", ".", "0", "12",
    "1234", "3412", "2143", "4321", "x", "e", "inf", "nan", "_", "lambda:", "import os\n", "\\left", "\\right",
    "<<", ">>",
    "9" * 400, "answer", "\u202e", "\ufeff", "\x1b[2J", "<|eot_id|>", "\\begin{pmatrix}", "&", "\\end{pmatrix}",
]  # fmt: skip
_PIECE = st.sampled_from(_PIECES) | st.text(max_size=3)
COMPLETIONS = st.one_of(
    st.lists(_PIECE, max_size=12).map("".join),
    st.text(max_size=30),
    st.tuples(st.lists(_PIECE, min_size=1, max_size=3).map("".join), st.sampled_from([10, 300, 5_000])).map(
        lambda repeated: (repeated[0] * repeated[1])[:20_000]
    ),
    st.tuples(_PIECE, _PIECE, st.sampled_from([30, 2_000])).map(
        lambda nest: (nest[0] * nest[2])[:10_000] + (nest[1] * nest[2])[:10_000]
    ),
)

_SUDOKU = {"puzzle": "1003000000000000", "solution": "1243341221344321"}
_COUNTDOWN = {"numbers": [1, 2, 3], "target": 6}
_TASKS: list[tuple[Any, dict[str, Any]]] = [
    (build(TASKS[name], table), columns)
    for name, table, columns in (
        ("sudoku", {}, _SUDOKU),
        ("sudoku-words", {}, _SUDOKU),
        ("sudoku-words", {"scoring": "d1"}, _SUDOKU),
        ("countdown", {}, _COUNTDOWN),
        ("countdown-words", {}, _COUNTDOWN),
        ("countdown-words", {"scoring": "d1"}, _COUNTDOWN),
        ("arithmetic", {}, {"answer": 6}),
        ("gsm8k", {}, {"answer": "1,234.5"}),
        ("gsm8k", {"scoring": "d1"}, {"answer": "42"}),
        ("math500", {"scoring": "d1"}, {"answer": "\\frac{1}{2}"}),
        ("dataset", {"answer_kind": "number"}, {"answer": "1/2"}),
        ("dataset", {"answer_kind": "text"}, {"answer": "\\text{yes}"}),
    )
]
_LATEX = [
    (build(TASKS["math500"], {}), {"answer": "\\frac{1}{2}"}),
    (build(TASKS["dataset"], {"answer_kind": "latex"}), {"answer": "(3, \\pi)"}),
]
_READERS: list[Callable[[str], object]] = [
    answers.boxed, answers.tagged, answers.hashed, answers.last_number, answers.final_answer, answers.before_end,
    expressions.is_expression, expressions.plain_signs, formulas.stated_formula, formulas.declared_formula,
    formulas.joined_boxes, formulas.unwrapped, numerals.plain, numerals.joined_digits, numerals.last_quantity,
    numerals.leading_quantity, quantities.quantity, programs.program, programs.parsed,
    lambda text: programs.program(text, "def f(x):\n", "f"),
    d1.gsm8k_extracted, d1.countdown_extracted, d1.arithmetic, d1.boxed_or_whole, d1_sudoku.sudoku_extracted,
    lambda text: d1_math.math_correct(text, "\\frac{1}{2}"), lambda text: d1_math.math_correct("\\frac{1}{2}", text),
]  # fmt: skip


def run_completion(text: str, directory: Path) -> None:
    """Read and score one completion by everything that does not start a process for it."""
    for reader in _READERS:
        reader(text)
    _score(_TASKS, text)


def run_latex(text: str, directory: Path) -> None:
    """Compare one completion's formula, in a process that has its own limits of time and memory."""
    _score(_LATEX[:1], text)


def _score(tasks: list[tuple[Any, dict[str, Any]]], text: str) -> None:
    for task, columns in tasks:
        lists = {name: [value] for name, value in columns.items()}
        (reward,) = task.rewards(["?"], [text], **lists)
        # The published reward takes off a thousandth for each character behind a tag, of which it looks for two.
        lowest = -0.002 * len(text) if getattr(task, "scoring", None) == "d1" else 0.0
        assert lowest <= reward <= 4, f"{task} gives {reward}"
        for name, values in task.metrics(["?"], [text], **lists).items():
            assert 0 <= values[0] <= 1, f"{task}: {name} is {values[0]}"
        task.well_formed(text)
