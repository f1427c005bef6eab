"""Intervals and pass@k by hand."""

from itertools import combinations

import pytest

from unmask.evaluation.statistics import paired_interval, pass_at, solved_summary, wilson_interval


def test_wilson_interval_is_that_by_hand():
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.16113), abs=1e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_paired_interval_is_that_by_hand():
    gain, low, high = paired_interval([0, 0, 1, 1], [1, 0, 1, 1])
    assert gain == 0.25
    assert (low + high) / 2 == pytest.approx(0.25)
    assert high - low == pytest.approx(2 * 1.959964 * 0.25, abs=1e-5)


def test_paired_interval_without_change_has_no_width():
    assert paired_interval([1.0, 0.0], [1.0, 0.0]) == (0.0, 0.0, 0.0)


def test_solved_summary_interval_holds_the_rate():
    summary = solved_summary([1.0, 0.0, 0.0, 1.0])
    assert summary["solved"] == 0.5
    assert summary["solved_low"] < 0.5 < summary["solved_high"]


def test_pass_at_is_the_mean_over_all_choices_of_k():
    for samples, right, k in ((4, 1, 2), (6, 2, 3), (5, 0, 2), (5, 5, 1), (8, 7, 4)):
        outcomes = [1] * right + [0] * (samples - right)
        choices = list(combinations(outcomes, k))
        assert pass_at(k, right, samples) == pytest.approx(sum(map(max, choices)) / len(choices))
