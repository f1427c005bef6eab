"""How GPUs share the weights of a model: whole on each, split over all, or split over some and repeated.

Pure arithmetic on counts. `choose_layout` decides from what each layout takes, for a plan and for a training run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`ranks` GPUs in groups of `shard`: a group holds the trained weights once, each of its GPUs a piece of every one.

        Layout(ranks=8)            # replicated: each holds all, gradients are summed
        Layout(ranks=8, shard=8)   # sharded
        Layout(ranks=64, shard=8)  # hybrid: eight groups that hold the same, each sharded over eight

    `node`: GPUs of a machine, whose links are faster than the network between machines.
    """

    ranks: int = 1
    shard: int = 1
    node: int = 8

    @property
    def replicas(self) -> int:
        """Groups that hold the same weights."""
        return self.ranks // self.shard

    @property
    def sharded(self) -> bool:
        """Whether weights, gradients and optimizer are split."""
        return self.shard > 1

    @property
    def nodes(self) -> int:
        """Machines in use."""
        return -(-self.ranks // self.node)

    def piece(self, count: int) -> int:
        """What a GPU holds of so many weights, or bytes, that are split: the largest piece."""
        return -(-count // self.shard)


WHOLE = Layout()  # one GPU


@dataclass(frozen=True, kw_only=True)
class WeightGroups:
    """Numbers of weights by what is gathered together: those of each layer, and the root's (embedding, norm, head)."""

    layers: tuple[int, ...]
    root: int

    @property
    def total(self) -> int:
        """All weights."""
        return sum(self.layers) + self.root

    def working(self) -> int:
        """Weights that stand gathered at once in an update.

        The root's, from its forward to the end of its backward; the layer at work, and the next one on its way.
        """
        return self.root + sum(sorted(self.layers)[-2:])


# ---- memory of a sharded model, by part; bytes on one GPU ----


def masters_bytes(weights: WeightGroups, layout: Layout) -> int:
    """The weights that the optimizer steps on, float32: 4 bytes each, split."""
    return layout.piece(weights.total) * torch.float32.itemsize


def moments_bytes(weights: WeightGroups, layout: Layout) -> int:
    """AdamW's two moments, float32 and split as the masters are."""
    return 2 * masters_bytes(weights, layout)


def gradients_bytes(weights: WeightGroups, layout: Layout) -> int:
    """Summed gradients, float32 and split as the masters are."""
    return masters_bytes(weights, layout)


def gathered_bytes(weights: WeightGroups, dtype: torch.dtype) -> int:
    """All weights on every GPU, while it samples or answers without gradient: no collective is needed then."""
    return weights.total * dtype.itemsize


def working_bytes(weights: WeightGroups, dtype: torch.dtype) -> int:
    """The most gathered weights in an update; `dry_run` has them, and the gradients on their way, moment by moment."""
    return weights.working() * dtype.itemsize


def frozen_bytes(weights: WeightGroups, layout: Layout) -> int:
    """A frozen copy, float32 and split as the masters are."""
    return masters_bytes(weights, layout)


def optimizer_bytes(weights: WeightGroups, layout: Layout) -> int:
    """What AdamW takes for a step beside its state: roots of the second moments of all its weights."""
    return masters_bytes(weights, layout)


# ---- which layout ----


def layouts(ranks: int, node: int, *, nodes_replicate: bool = True) -> tuple[Layout, ...]:
    """Those worth trying, least communication first: replicated, sharded within each machine, sharded over all.

    The second only where machines are full and `nodes_replicate`.
    """
    within = node if nodes_replicate and ranks % node == 0 else ranks
    return tuple(Layout(ranks=ranks, shard=shard, node=node) for shard in dict.fromkeys((1, within, ranks)))


def choose_layout(tried: Sequence[Layout], peak: Callable[[Layout], float], usable: float) -> Layout:
    """The first whose peak bytes on a GPU stay within `usable`; the last where none does."""
    return next((layout for layout in tried if peak(layout) <= usable), tried[-1])
