"""What counts as the same mathematics in LaTeX, and hostile answers that cost two seconds at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.long import long_unless
from unmask.errors import UserError
from unmask.verifiers.latex import Checker, same_latex

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    checker = Checker(workers=2)
    assert checker.same([("0.5", r"\frac{1}{2}")]) == [True]  # it has started
    yield checker
    checker.close()


SAME = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
    ("p - q", "-q+p"),
    ("x^3+3x-6", "(x^3 - 6) + 3x"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(C)}", "C"),
    ("5", "x=5"),
    ("5", r"5 \text{ cm}"),
    ("5", "$5$."),
    ("10,000", "10000"),
    (r"10,\!000", r"10{,}000"),
    (r"11\sqrt2", r"11\sqrt{2}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("3, 5, 7", r"\{5, 3, 7\}"),
    (r"[-2,7]", r"-2 \le x \le 7"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"90^\circ", "90"),
    (r"1\frac{1}{2}", r"\(1.5\)"),
    ("7", "3+4"),
]
DIFFERENT = [
    ("5", ""),
    ("", ""),
    ("5", "-5"),
    ("5", "5x"),
    ("5", "5, 6"),
    ("5", "5 or 6"),
    ("5", r"5 \text{ or } 6"),
    ("5", r"x = 5, x = 6"),
    ("5", r"\pm 5"),
    ("5", r"5 \ne 6"),
    ("5", "[5, 6]"),
    ("5", r"x \ge 5"),
    ("5, 6", "5"),
    ("(1,2)", "(2,1)"),
    ("[3,4)", "(3,4]"),
    (r"\frac{3}{56}", r"\frac{3}{57}"),
    (r"\text{east}", r"\text{west}"),
    ("1/3", "0.33"),
    ("i", "-i"),
    ("5", "5" * 401),
]


def test_same_latex_finds_what_is_the_same(checker: Checker) -> None:
    assert [pair for pair, same in zip(SAME, checker.same(SAME), strict=True) if not same] == []


def test_same_latex_finds_what_is_different(checker: Checker) -> None:
    assert [pair for pair, same in zip(DIFFERENT, checker.same(DIFFERENT), strict=True) if same] == []


HOSTILE = [
    "9^{9^{9^9}}",
    "10^{10^{10}}",
    r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}",
    "(10^9)!",
    r"\binom{10^{9}}{5\cdot10^{8}}",
    r"\sum_{n=1}^{10^{12}} n^n",
    "(1+x+y+z)^{200}",
    "(" * 300,
    "{" * 300,
    r"\frac{" * 60,
    r"\sqrt{" * 60 + "2" + "}" * 60,
    "1+" * 190 + "1",
    "x" * 390,
    "1E+999999999",
    "\0" * 100,
    "\ud800",
    "9" * 100_000,
]


@pytest.mark.parametrize("text", long_unless(HOSTILE[::6], HOSTILE), ids=range(len(HOSTILE)))
def test_same_latex_ends_a_hostile_answer_within_two_seconds(checker: Checker, text: str) -> None:
    started = time.perf_counter()
    assert checker.same([("5", text)]) == [False]
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("form", ["{}", r"\text{{{}}}", "1 + {}", "x = {}", "${}$", "{} = {}", "5, {}"])
def test_same_latex_runs_no_answer(checker: Checker, tmp_path: Path, form: str) -> None:
    code = f"__import__('os').system('touch {tmp_path}/hacked')"
    checker.same([("5", form.format(code, code)), (form.format(code, code), "5")])
    assert not list(tmp_path.iterdir())


def test_same_latex_hostile_answer_does_not_harm_its_neighbours(checker: Checker) -> None:
    assert checker.same([("5", "2+3"), ("5", "(10^9)!"), ("5", "7-2"), ("5", "7-3")]) == [True, False, True, False]


def test_same_latex_tries_the_same_hostile_answer_once(checker: Checker) -> None:
    started = time.perf_counter()
    assert checker.same([("5", "(10^9)!")] * 100) == [False] * 100
    assert time.perf_counter() - started < 2


@few
@given(st.text(alphabet="0123456789^{}()\\frac!+-*/x,.= sqrt", max_size=30))
def test_same_latex_judges_any_text_in_time(text: str) -> None:
    same_latex([("5", "2+3")])  # it has started
    started = time.perf_counter()
    same_latex([("5", text)])
    assert time.perf_counter() - started < 2


def test_checker_server_stays_and_is_replaced_when_killed() -> None:
    checker = Checker(workers=1)
    assert checker.same([("5", "2+3")]) == [True]
    first = checker._server
    assert first is not None
    assert checker.same([("5", "1+4")]) == [True]
    assert checker._server is first
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert checker.same([("5", "2+3"), ("5", "2+4")]) == [True, False]
    assert checker._server is not first
    checker.close()
    assert checker._server is None
    checker.close()


def test_checker_threads_share_a_server(checker: Checker) -> None:
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda number: checker.same([(str(number), f"{number - 1}+1")]), range(8)))
    assert results == [[True]] * 8


def test_checker_server_that_cannot_compare_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="try `python -c 'import math_verify'`"):
        Checker().same([("5", "2+3")])


def test_checker_server_ends_with_its_process() -> None:
    script = (
        "from unmask.verifiers import latex\n"
        "print(latex.same_latex([('5', '2+3')]), latex._checker(__import__('os').getpid())._server.pid)"
    )
    printed = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    result, pid = printed.stdout.rsplit(maxsplit=1)
    assert (result, printed.stderr) == ("[True]", "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
