"""What GPUs send each other in a training step, and how long that takes at stated bandwidths.

A ring: of a message of B bytes each of n GPUs sends B (n - 1) / n, twice that where it is summed and every GPU gets the
sum. Within a machine at the bandwidth of its links; between machines all its GPUs that take part send at once, each
through an adapter of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.plan.gpus import Network
from unmask.plan.layout import Layout
from unmask.plan.networks import Size
from unmask.plan.work import TermWork, Work

LATENCY = 50e-6  # seconds of a message beside its bytes: an assumption


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The messages of one kind in a training step."""

    name: str
    messages: int
    size: int  # bytes of all of them together, whole tensors
    ranks: int  # GPUs that take part
    members: int  # of them in one machine
    rounds: int = 1  # 2: a sum that every GPU gets

    @property
    def sent(self) -> float:
        """Bytes that each GPU sends, and receives."""
        return self.rounds * self.size * (self.ranks - 1) / self.ranks

    def seconds(self, network: Network) -> float:
        """Time of all messages, one after another, with nothing beside them."""
        rate = network.link if self.members >= self.ranks else min(network.link, network.between * self.members)
        return self.messages * LATENCY + self.sent / rate


def transfers_of(layout: Layout, size: Size, work: Work, dtype: torch.dtype) -> tuple[Transfer, ...]:
    """All messages of a training step; `dtype`: what gathered weights are. Metrics and prompts are too small to count.

    Replicated: gradients, once an update. Sharded: all weights before the rollout, before each policy that answers
    without gradient, and before an update that blends the old policy's logits or scores the whole batch first; in each
    micro-batch a layer's weights twice, forwards and backwards, the others' and all gradients once.
    """
    if layout.ranks == 1:
        return ()
    if not layout.sharded:
        return (
            Transfer(
                name="gradients",
                messages=work.updates,
                size=work.updates * size.trained_bytes,
                ranks=layout.ranks,
                members=min(layout.ranks, layout.node),
                rounds=2,
            ),
        )
    groups, total, layers = len(size.groups.layers) + 1, size.groups.total, sum(size.groups.layers)
    within = {"ranks": layout.shard, "members": min(layout.shard, layout.node)}
    whole, passes = _gatherings(work), work.updates * sum(map(_micro_batches, work.terms))
    summed = total * torch.float32.itemsize
    moved = (
        Transfer(name="weights, whole", messages=groups * whole, size=whole * total * dtype.itemsize, **within),
        Transfer(
            name="weights, by layer",
            messages=(2 * groups - 1) * passes,
            size=(layers + total) * passes * dtype.itemsize,
            **within,
        ),
        Transfer(name="gradients, by layer", messages=groups * passes, size=passes * summed, **within),
    )
    if layout.replicas == 1:
        return moved
    among = Transfer(
        name="gradients, of replicas",
        messages=groups * work.updates,
        size=work.updates * layout.piece(total) * torch.float32.itemsize,
        ranks=layout.replicas,
        members=max(1, layout.node // layout.shard),
        rounds=2,
    )
    return (*moved, among)


def _micro_batches(term: TermWork) -> int:
    return -(-term.forwards // term.batch)


def _gatherings(work: Work) -> int:
    """How often all weights of a policy are gathered: to sample, to tell what a cache changed, to answer, to blend."""
    terms, several = work.terms, work.updates > 1
    once = (
        True,
        work.rescored[0] > 0,
        any(term.reference for term in terms),
        several and any(term.old for term in terms),
    )
    every_update = (any(term.scores_first for term in terms), several and any(term.blended for term in terms))
    return sum(once) + work.updates * sum(every_update)
