"""The process behind `latex.Checker`: compares pairs of LaTeX answers, each in a fork that the kernel ends in time.

It imports math-verify once and stays; what it forks has that import and the parser's warm caches. Parsing a text such
as 9^{9^{9^9}} sits in one call that no Python timer interrupts, but SIGALRM's default action ends the process anyway.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# One answer of each kind: the parser is slow where it meets a construct first, and forks inherit what it has learnt.
_KINDS = (
    r"\frac{1}{2}", "0.5", r"\left( 3, \frac{\pi}{2} \right)", r"-2 \le x \le 7", r"[-2, \infty) \cup (1, 2)", "p - q",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\text{Evelyn}", "x = 5", r"11\sqrt{2} + 3i", r"50\%", "x^3+3x-6",
    r"\{1 \pm \sqrt{5}, -2\}", r"90^\circ", "2516_8", "10,000", r"\log_2 x", r"5 \text{ cm}", "y = 2x + 3",
)  # fmt: skip


def comparer() -> Callable[[str, str], bool]:
    """math-verify's comparison of a reference answer with another answer, imported."""
    from math_verify import grader, parse, verify
    from math_verify.parser import LatexExtractionConfig

    # This file is run by its place, and finds its neighbour there.
    spec = importlib.util.spec_from_file_location("exact_numbers", Path(__file__).with_name("exact_numbers.py"))
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018
    exact_numbers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(exact_numbers)
    # Numbers stand in sets, pairs, matrices and equations: the one function that compares them all is replaced.
    grader.sympy_numeric_eq = exact_numbers.exact_comparison(grader.sympy_numeric_eq)

    logging.disable(logging.CRITICAL)
    # Only LaTeX is extracted: the reader of plain expressions hands text to sympy's parse_expr, which runs it.
    extraction = [LatexExtractionConfig(boxed_match_priority=0)]

    def same(reference: str, answer: str) -> bool:
        # Without its own timeouts: they need signal handlers, and the kernel's is stricter.
        parsed = [parse(f"\\boxed{{{text}}}", extraction, parsing_timeout=None) for text in (reference, answer)]
        return bool(verify(*parsed, allow_set_relation_comp=True, timeout_seconds=None))

    return same


def compare_all(
    same: Callable[[str, str], bool], pairs: Sequence[Sequence[str]], seconds: float, memory: int, workers: int
) -> list[bool]:
    """Whether each pair is equivalent, compared in a process each, `workers` at a time; False if it is ended."""
    results = [False] * len(pairs)
    waiting = list(reversed(list(enumerate(pairs))))
    running: dict[int, int] = {}
    while waiting or running:
        if waiting and len(running) < workers:
            index, (reference, answer) = waiting.pop()
            child = os.fork()
            if child == 0:
                _compare_and_exit(same, reference, answer, seconds, memory)
            running[child] = index
        else:
            child, status = os.wait()
            results[running.pop(child)] = status == 0
    return results


def _compare_and_exit(
    same: Callable[[str, str], bool], reference: str, answer: str, seconds: float, memory: int
) -> None:
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        _limit_memory(memory)
        code = 0 if same(reference, answer) else 1
    finally:
        os._exit(code)


def _limit_memory(size: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    with suppress(ValueError, OSError):  # macOS knows no such limit; time still ends what grows
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main() -> None:
    """Serve comparison requests from stdin, one JSON line each, until it ends."""
    # Parsers print now and then; nothing but results may reach the pipe.
    replies = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    same = comparer()
    os.dup2(quiet, 2)
    for kind in _KINDS:
        same(kind, kind + " + 1")
    gc.freeze()
    # A child that fails for any reason says "not the same": make sure that one can say the other.
    if compare_all(same, [("0.5", r"\frac{1}{2}")], seconds=30, memory=2**31, workers=1) != [True]:
        sys.exit(1)
    for line in sys.stdin:
        print(json.dumps(compare_all(same, **json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
