"""Statistics of held-out results: 95 % intervals of rates and of paired gains, pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt

Z_95 = 1.959963984540054


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """(low, high): 95 % interval of a rate of `successes` among `count` (Wilson 1927)."""
    rate, z2 = successes / count, Z_95**2 / count
    centre, half = rate + z2 / 2, Z_95 * sqrt(rate * (1 - rate) / count + z2 / (4 * count))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


def paired_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """(gain, low, high): mean of after - before over the same examples, and its 95 % interval (normal)."""
    gains = [late - early for early, late in zip(before, after, strict=True)]
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)
    half = Z_95 * sqrt(variance / len(gains))
    return mean, mean - half, mean + half


def solved_summary(solved: Sequence[float]) -> dict[str, float]:
    """Solve rate `solved` of values in [0, 1], and its 95 % interval `solved_low`, `solved_high`."""
    low, high = wilson_interval(sum(solved), len(solved))
    return {"solved": sum(solved) / len(solved), "solved_low": low, "solved_high": high}


def pass_at(k: int, right: int, samples: int) -> float:
    """pass@k = 1 - C(n-c, k) / C(n, k): the chance that one of k of n samples is right, c being so (2107.03374)."""
    return 1 - comb(samples - right, k) / comb(samples, k)
