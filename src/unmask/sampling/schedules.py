"""Schedules: how many of the `masks` positions of a block each of its `steps` denoising steps commits. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

Schedule = Callable[[int, int], tuple[int, ...]]  # (masks, steps) -> positions to commit in each step


def uniform_schedule(masks: int, steps: int) -> tuple[int, ...]:
    """Equal counts, the remainder spread over the first steps (LLaDA 2502.09992)."""
    return tuple(masks // steps + (step < masks % steps) for step in range(steps))


def _kept(curve: Callable[[float], float], masks: int, steps: int) -> tuple[int, ...]:
    """Counts from floor(masks · curve(t)) masks left after a fraction t of the steps, curve(0) = 1."""
    left = [masks] + [int(masks * curve((step + 1) / steps)) for step in range(steps)]
    return tuple(before - after for before, after in pairwise(left))


def linear_schedule(masks: int, steps: int) -> tuple[int, ...]:
    """n_u = floor(B (1 - u/S)) - floor(B (1 - (u+1)/S)): uneven by rounding, as MDPO's code (2508.13148)."""
    return _kept(lambda time: 1 - time, masks, steps)


def cosine_schedule(masks: int, steps: int) -> tuple[int, ...]:
    """Few first, many later: floor(B cos(pi t / 2)) masks left (MaskGIT 2202.04200)."""
    from math import cos, pi

    return _kept(lambda time: cos(time * pi / 2), masks, steps)


def square_schedule(masks: int, steps: int) -> tuple[int, ...]:
    """Few first, many later: floor(B (1 - t²)) masks left (MaskGIT 2202.04200)."""
    return _kept(lambda time: 1 - time**2, masks, steps)


def dream_schedule(masks: int, steps: int) -> tuple[int, ...]:
    """floor(m (1 - s/t)) of the m masks left, t from 1 to 0.001 evenly, s the next t; the last step all (Dream)."""
    counts, left = [], masks
    times = [1 - 0.999 * step / steps for step in range(steps + 1)]
    for step in range(steps):
        counts.append(left if step == steps - 1 else int(left * (1 - times[step + 1] / times[step])))
        left -= counts[-1]
    return tuple(counts)


SCHEDULES: dict[str, Schedule] = {
    "uniform": uniform_schedule,
    "linear": linear_schedule,
    "cosine": cosine_schedule,
    "square": square_schedule,
    "dream": dream_schedule,
}
