"""Mathematical equivalence of LaTeX answers by math-verify, in processes that are ended when they take too long."""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from threading import Lock

from unmask.errors import UserError
from unmask.verifiers import latex_server
from unmask.verifiers.answers import LONGEST_ANSWER
from unmask.verifiers.numerals import joined_digits

SECONDS = 1.2  # for one comparison; an honest one takes about a twentieth
MEMORY = 2**31  # bytes of address space for one comparison
MOST_WORKERS = 8  # several ranks may share a machine
_PATIENCE = 30  # seconds beyond the sum of the limits until the server itself counts as stuck
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]!]|(?<!\\)\$|\\(?:left|right|[Bb]igg?|displaystyle)(?![A-Za-z])")
_SPACES = re.compile(r"(?<!\\)\\[,;:]")
_RELATIONS = (
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"<=(?!>)|=<|≤|⩽|\\(?:leqslant|leqq)(?![A-Za-z])"), r"\\leq "),
    (re.compile(r"(?<!=)>=|≥|⩾|\\(?:geqslant|geqq)(?![A-Za-z])"), r"\\geq "),
    (re.compile(r"(?<![0-9)\]}!])!=|≠|\\not ?="), r"\\neq "),  # 5!=120 is a factorial
)
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "±": r"\pm "}
    | {"π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ "}
)
# Three powers on top of each other are a trap, not an answer; why wait until time is up.
_TOWER = re.compile(r"(?:[0-9.]+[ )}]*\^[ ({]*){3}")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox) ?\{([^{}]*)\}")


def same_latex(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each (reference, answer) pair is mathematically equivalent; False if it takes too long or cannot be read.

    same_latex([(r"\\frac{1}{2}", "0.5"), ("x=5", "6")])  # [True, False]
    """
    return _checker(os.getpid()).same(pairs)


@cache
def _checker(process: int) -> Checker:
    """The one checker of this process: a fork of it must not write into the same pipes."""
    checker = Checker()
    atexit.register(checker.close)
    return checker


class Checker:
    """A comparer of LaTeX answers with one server process, which starts when first needed and stays."""

    def __init__(self, seconds: float = SECONDS, workers: int | None = None) -> None:
        self.limits = {
            "seconds": seconds,
            "memory": MEMORY,
            "workers": workers or min(os.cpu_count() or 1, MOST_WORKERS),
        }
        self._server: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each (reference, answer) pair is mathematically equivalent, in order."""
        tidy = [(_tidy(reference), _tidy(answer)) for reference, answer in pairs]
        # A group of completions often agrees: each different pair is compared once.
        compared = list(dict.fromkeys(pair for pair in tidy if _needs_comparison(*pair)))
        known = dict(zip(compared, self._compare(compared), strict=True)) if compared else {}
        return [known.get(pair, pair[0] == pair[1] != "") for pair in tidy]

    def _compare(self, pairs: list[tuple[str, str]]) -> list[bool]:
        with self._lock:
            for _ in range(2):
                results = None
                try:
                    results = self._ask(pairs)
                finally:
                    # It died, for want of memory perhaps, or its reply is still to come (Ctrl-C): start afresh.
                    if results is None:
                        self._stop()
                if results is not None:
                    return results
        raise UserError("the process that compares LaTeX does not answer: try `python -c 'import math_verify'`")

    def _ask(self, pairs: list[tuple[str, str]]) -> list[bool] | None:
        server = self._server
        if server is None:
            server = self._server = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", latex_server.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        assert server.stdin is not None  # noqa: S101
        assert server.stdout is not None  # noqa: S101
        try:
            print(json.dumps({"pairs": pairs, **self.limits}), file=server.stdin, flush=True)
        except BrokenPipeError:
            return None
        patience = _PATIENCE + self.limits["seconds"] * len(pairs)
        if not select.select([server.stdout], [], [], patience)[0]:
            return None
        line = server.stdout.readline()
        return list(json.loads(line)) if line else None

    def close(self) -> None:
        """Stop the server; a later comparison starts another one."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._server is None:
            return
        self._server.kill()
        self._server.communicate()
        self._server = None


def _needs_comparison(reference: str, answer: str) -> bool:
    if reference == answer or not reference or not answer or max(len(reference), len(answer)) > LONGEST_ANSWER:
        return False
    return not _TOWER.search(answer)


def _tidy(answer: str) -> str:
    """Without marks that never change the meaning; the same words in \\text{} and out of it are the same."""
    if len(answer) > 2 * LONGEST_ANSWER:
        return answer
    answer = joined_digits(answer.replace("\0", "").translate(_SIGNS)).replace("{,}", ",")
    answer = _SPACES.sub(" ", _DELIMITERS.sub("", answer))
    for written, relation in _RELATIONS:
        answer = written.sub(relation, answer)
    whole = _TEXT.fullmatch(answer.strip())
    answer = whole[1] if whole else answer
    return " ".join(answer.split()).removesuffix(".")
