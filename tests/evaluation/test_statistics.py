"""Intervals by hand and by their coverage, pass@k by enumeration."""

from itertools import combinations
from math import sqrt

import numpy as np
import pytest

from helpers.long import long_unless
from unmask.evaluation.statistics import effective_count, paired_interval, pass_at, solved_summary, wilson_interval


def test_wilson_interval_is_that_by_hand():
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.16113), abs=1e-5)


def test_wilson_interval_of_none_and_of_all_ends_exactly_there():
    for count in range(1, 2000):
        assert wilson_interval(0, count)[0] == 0.0
        assert wilson_interval(count, count)[1] == 1.0


def test_paired_interval_of_one_change_holds_no_change():
    before, after = [0.0] + [1.0] * 43, [1.0] * 44
    gain, low, high = paired_interval(before, after)
    assert gain == pytest.approx(1 / 44)
    assert (low, high) == pytest.approx((-0.0600, 0.1185), abs=1e-3)


def test_paired_interval_without_change_is_as_wide_as_a_few_changes():
    for count in (20, 2000):
        gain, low, high = paired_interval([1.0] * count, [1.0] * count)
        assert gain == 0
        assert -low == pytest.approx(high)
        assert high == pytest.approx(1.96**2 / (count + 1.96**2), rel=1e-3)


def covered(interval, truth) -> bool:
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("count", long_unless({200}, (200, 2000)))
@pytest.mark.parametrize(("ups", "downs"), [(0.2, 0), (1, 1), (2, 0), (0, 3), (5, 5), (20, 5), (60, 20)])
def test_paired_interval_covers_however_few_changes_are_expected(count, ups, downs):
    noise, hits, width = np.random.default_rng(0), 0, 0.0
    for _ in range(400):
        _, up, down = noise.multinomial(1, [1 - (ups + downs) / count, ups / count, downs / count], size=count).T
        _, low, high = paired_interval([0.0] * count, (up - down).tolist())
        hits += covered((low, high), (ups - downs) / count)
        width += (high - low) / 400
    assert hits / 400 > 0.93
    assert width < 1.4 * 2 * 1.96 * sqrt(ups + downs + 2) / count  # and is not wider than it must be


def test_paired_interval_of_rates_of_several_samples_covers():
    noise, hits, widths = np.random.default_rng(0), 0, []
    for _ in range(400):
        hard = noise.beta(1, 1, size=100)
        before, after = (noise.binomial(16, rate) / 16 for rate in (hard, np.minimum(hard + 0.02, 1)))
        truth = float((np.minimum(hard + 0.02, 1) - hard).mean())
        _, low, high = paired_interval(before.tolist(), after.tolist())
        hits += covered((low, high), truth)
        widths.append(high - low)
    assert 0.92 < hits / 400 < 0.99
    assert np.mean(widths) < 0.06  # of single samples it would be 0.2


HARD = {  # rates of examples whose mean is p, and the coverage of 30 and more
    "alike": (lambda noise, p, count: np.full(count, p), 0.93),
    "spread": (lambda noise, p, count: noise.beta(2 * p, 2 - 2 * p, size=count), 0.90),
    "solved or not": (lambda noise, p, count: (noise.random(count) < p).astype(float), 0.91),
}


@pytest.mark.parametrize("count", [30, 100])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("name", HARD)
def test_solved_summary_of_several_samples_covers(name, p, count):
    rates_of, least = HARD[name]
    noise, hits, width = np.random.default_rng(0), 0, 0.0
    for _ in range(400):
        rates = noise.binomial(16, rates_of(noise, p, count)) / 16
        summary = solved_summary(rates.tolist(), 16)
        hits += covered((summary["solved_low"], summary["solved_high"]), p)
        width += (summary["solved_high"] - summary["solved_low"]) / 400
    assert hits / 400 > least
    if name == "alike":  # as many independent samples: a quarter of the width over examples
        assert width < 1.2 * 2 * 1.96 * sqrt(p * (1 - p) / (16 * count))


def test_effective_count_of_single_samples_is_their_number():
    assert effective_count([1.0, 0.0, 0.0, 1.0, 0.0], 1) == 5
    assert effective_count([0.0] * 7, 16) == 7


def test_solved_summary_interval_holds_the_rate():
    summary = solved_summary([1.0, 0.0, 0.0, 1.0])
    assert summary["solved"] == 0.5
    assert summary["solved_low"] < 0.5 < summary["solved_high"]


def test_pass_at_is_the_mean_over_all_choices_of_k():
    for samples, right, k in ((4, 1, 2), (6, 2, 3), (5, 0, 2), (5, 5, 1), (8, 7, 4)):
        outcomes = [1] * right + [0] * (samples - right)
        choices = list(combinations(outcomes, k))
        assert pass_at(k, right, samples) == pytest.approx(sum(map(max, choices)) / len(choices))
