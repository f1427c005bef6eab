"""The short form of `make fuzz`: odd inputs give a result or one line, in time, and touch nothing elsewhere."""

import pytest

from fuzz import TARGETS, fuzz
from fuzzing.harness import Tally, check
from unmask.errors import UserError

CASES = {
    "flags": 40,
    "recipes": 40,
    "data": 40,
    "templates": 40,
    "models": 12,
    "completions": 20,
    "latex": 3,
    "judge": 20,
}


@pytest.mark.parametrize("name", TARGETS)
def test_odd_inputs_keep_the_promises(name, tmp_path):
    tally = fuzz(TARGETS[name], CASES[name], 1, tmp_path)
    assert tally.cases == CASES[name]


def raising(error):
    raise error


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda inside: raising(KeyError("x")), "x"),
        (lambda inside: raising(UserError("")), "empty"),
        (lambda inside: (inside.parent / "elsewhere").write_text("x"), "elsewhere"),
        (lambda inside: (inside.parent / "folder").mkdir(), "folder"),
    ],
)
def test_check_notices_a_broken_promise(work, error, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises((KeyError, AssertionError), match=error):
        check(lambda: work(inside), inside, Tally())


def test_check_takes_results_one_line_and_files_of_its_own(tmp_path):
    tally = Tally()
    check(lambda: (tmp_path / "mine").write_text("x"), tmp_path, tally)
    check(lambda: (tmp_path / "mine").unlink(), tmp_path, tally)
    check(lambda: raising(UserError("x is 1: give 2")), tmp_path, tally)
    assert (tally.cases, tally.refused) == (3, 1)
