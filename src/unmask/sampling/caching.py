"""Caching rules: which columns a denoising step runs again, the others' keys and values being kept from before.

Approximations where attention goes both ways: what is kept is older than the canvas. Torch-free, for the commands.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caching:
    """The first step of a block runs every column; its other steps run some, against the keys and values of all.

    `later`: the columns behind the block too (prefix cache), else the block alone (dual cache; Fast-dLLM 2505.22618).
    `delayed`: of the block only what is masked, and what the step before has revealed: a token's keys and values are
    kept once they have been computed from the token itself, one step late (dKV-Cache 2505.15781).
    """

    name: str
    later: bool
    delayed: bool


CACHINGS: dict[str, Caching | None] = {"none": None} | {
    caching.name: caching
    for caching in (
        Caching(name="prefix", later=True, delayed=False),
        Caching(name="dual", later=False, delayed=False),
        Caching(name="prefix_delayed", later=True, delayed=True),
        Caching(name="dual_delayed", later=False, delayed=True),
    )
}
