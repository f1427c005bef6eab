"""Cache policies: which columns a denoising step recomputes, the keys and values of the others being kept from before.

Approximations where attention goes both ways: what is kept is older than the canvas. Torch-free, for the commands;
`columns` turns a policy into column indices.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Caching:
    """KV-cache policy within a block: its first step runs every column; later steps recompute some of them.

    `suffix`: recompute the columns behind the block too (prefix cache), else the block alone (dual cache; Fast-dLLM
    2505.22618). `delayed`: of the block recompute only what is masked, and what the step before has changed: a token's
    keys and values are kept once they have been computed from the token itself, one step late (dKV-Cache 2505.15781).
    """

    name: str
    suffix: bool
    delayed: bool


CACHINGS: dict[str, Caching | None] = {"none": None} | {
    caching.name: caching
    for caching in (
        Caching(name="prefix", suffix=True, delayed=False),
        Caching(name="dual", suffix=False, delayed=False),
        Caching(name="prefix_delayed", suffix=True, delayed=True),
        Caching(name="dual_delayed", suffix=False, delayed=True),
    )
}
