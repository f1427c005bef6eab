"""Schedules: how many of the `masks` positions of a block each of its `steps` denoising steps commits. Torch-free.

`check_blocks`: which lengths, blocks and numbers of steps go together.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from unmask.errors import UserError

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


def check_blocks(
    max_new_tokens: int,
    block_length: int,
    steps: int | None,
    called: tuple[str, str, str] = ("max_new_tokens", "block_length", "steps"),
) -> None:
    """Raise UserError unless blocks share a completion and its steps evenly; `called`: how the user writes the three.

    `steps` None: the rule takes as many as it needs.
    """
    if block_length < 1 or max_new_tokens % block_length:
        raise UserError(
            f"{called[1]} {block_length} does not divide {called[0]} {max_new_tokens}: "
            f"give a divisor such as {max_new_tokens}"
        )
    blocks = max_new_tokens // block_length
    if steps is not None and (steps < blocks or steps % blocks):
        raise UserError(
            f"{called[2]} {steps} is not a multiple of the {blocks} blocks ({max_new_tokens} tokens in blocks "
            f"of {block_length}): give a multiple such as {blocks * max(1, round(steps / blocks))}"
        )
