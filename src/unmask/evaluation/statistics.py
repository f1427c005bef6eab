"""Statistics of held-out results: 95 % intervals of rates and of paired gains, pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import fmean

Z_95 = 1.959963984540054
_BISECTIONS = 60


def wilson_interval(successes: float, count: float) -> tuple[float, float]:
    """(low, high): 95 % interval of a rate of `successes` among `count` (Wilson 1927)."""
    rate, z2 = successes / count, Z_95**2 / count
    centre, half = rate + z2 / 2, Z_95 * sqrt(rate * (1 - rate) / count + z2 / (4 * count))
    low = (centre - half) / (1 + z2) if successes else 0.0
    high = (centre + half) / (1 + z2) if successes < count else 1.0
    return max(0.0, low), min(1.0, high)


def effective_count(rates: Sequence[float], samples: int) -> float:
    """How many independent outcomes the mean of examples' rates, each of `samples` outcomes, is as uncertain as.

    n p (1 - p) / variance of the rates · (z / t)² (Korn and Graubard 1998): from n, where the samples of an example are
    all alike, to n · samples, where examples are equally hard. n where p is 0 or 1, which tell nothing of it.
    """
    count, mean = len(rates), fmean(rates)
    if not 0 < mean < 1 or count == 1:
        return float(count)
    spread = sum((rate - mean) ** 2 for rate in rates) / (count - 1)
    if not spread:
        return float(count * samples)
    shrunk = mean * (1 - mean) * count / spread * (Z_95 / _student_95(count - 1)) ** 2
    return min(count * samples, max(count, shrunk))


def _student_95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5)."""
    z = Z_95
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def paired_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """(gain, low, high): mean of after - before over the same examples, and its 95 % interval.

    The score interval of paired proportions (Tango 1998), which holds where few examples change, and none. Where values
    are rates of several samples, changes count in units of sum of squares / sum of sizes: 1 where a change is 0 to 1.
    """
    gains = [late - early for early, late in zip(before, after, strict=True)]
    up, down = sum(max(gain, 0.0) for gain in gains), sum(max(-gain, 0.0) for gain in gains)
    unit = sum(gain**2 for gain in gains) / (up + down) if up + down else 1.0
    high = unit * _highest_gain(up / unit, down / unit, len(gains))
    low = -unit * _highest_gain(down / unit, up / unit, len(gains))
    return sum(gains) / len(gains), low, high


def _highest_gain(up: float, down: float, count: int) -> float:
    """The largest difference of proportions that Tango's score test does not refuse, by bisection."""
    low, high = (up - down) / count, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        deviation = count * middle - (up - down)
        accepted = deviation**2 <= Z_95**2 * _score_variance(up, down, count, middle)
        low, high = (middle, high) if accepted else (low, middle)
    return high


def _score_variance(up: float, down: float, count: int, gain: float) -> float:
    """Variance of up - down if the true difference is `gain`, the share of those that go down at its likeliest."""
    linear = up + down - gain * (2 * count - up + down)
    share = (linear + sqrt(linear**2 + 8 * count * down * gain * (1 - gain))) / (4 * count)
    return count * (2 * share + gain * (1 - gain))


def solved_summary(solved: Sequence[float], samples: int = 1) -> dict[str, float]:
    """Solve rate `solved` of examples' rates, of `samples` completions each, with its 95 % interval over examples.

    `solved_low`, `solved_high`: Wilson's with `effective_count`.
    """
    rate = fmean(solved)
    count = effective_count(solved, samples)
    low, high = wilson_interval(rate * count, count)
    return {"solved": rate, "solved_low": low, "solved_high": high}


def pass_at(k: int, right: int, samples: int) -> float:
    """pass@k = 1 - C(n-c, k) / C(n, k): the chance that one of k of n samples is right, c being so (2107.03374)."""
    return 1 - comb(samples - right, k) / comb(samples, k)


def figure_label(name: str) -> str:
    """A held-out figure's name in words: greedy_16 as "held-out, greedy in 16 steps", another split by its name."""
    if name == "pairs":
        return "held-out pairs"
    kind, _, steps = name.partition("_")
    return f"held-out, {kind} in {steps} steps" if steps.isdigit() else f"split {name}, as sampled in training"
