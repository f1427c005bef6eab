"""Random masks of the completion, and the weights that make sums of log-probs estimate its evidence lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.objective.masks.base import Masking, Span, position_draws, row_draws, sample_rows, smallest, through_eos
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms


class Masks(NamedTuple):
    """Masked span positions of R rows a sample, and the weight of each position's log-prob."""

    masked_NRL: Bool[Tensor, "N R L"]
    token_weight_NRL: Float[Tensor, "N R L"]  # read where masked


@runtime_checkable
class MaskDistribution(Protocol):
    """(rollout, span_NL, uniforms, update, updates) -> Masks: draws masks of the span's positions. Subclass it."""

    reads_trajectory: ClassVar[bool] = False  # whether masks are those of the recorded trajectory

    def __call__(
        self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int, /
    ) -> Masks: ...


@dataclass(frozen=True, kw_only=True)
class RandomMasks(Masking):
    """One unit a sample: rows of random masks within `span`, drawn from `distribution` afresh each update."""

    rows: ClassVar[str] = "random masks of the completion"
    unit: ClassVar[str] = "sample"
    distribution: MaskDistribution
    span: Span = through_eos

    @property
    def reads_trajectory(self) -> bool:
        """As the distribution does."""
        return self.distribution.reads_trajectory

    def __call__(
        self, rollout: Rollout, advantage: Float[Tensor, "P G"], uniforms: Uniforms, update: int, updates: int
    ) -> ScoringBatch:
        span_NL = self.span(rollout)
        masks = self.distribution(rollout, span_NL, uniforms, update, updates)
        after_N1L = (rollout.region_L & ~span_NL)[:, None]
        return sample_rows(
            rollout,
            masked_NRL=masks.masked_NRL | after_N1L,
            scored_NRL=masks.masked_NRL,
            token_weight_NRL=masks.token_weight_NRL * masks.masked_NRL,
            length_N=span_NL.sum(1),
            advantage=advantage,
        )


def _exactly(rollout: Rollout, span_NL: Tensor, key_NR: Uniforms, count_NR: Int[Tensor, "N R"]) -> Tensor:
    """A uniform subset of `count` span positions in each row."""
    draw_NRL = position_draws(rollout, key_NR.key("position"))
    return smallest(draw_NRL, span_NL[:, None].expand_as(draw_NRL), count_NR)


def _bernoulli(rollout: Rollout, span_NL: Tensor, key_NR: Uniforms, time_NR: Float[Tensor, "N R"]) -> Tensor:
    """Each span position with probability t, at least one."""
    draw_NRL = position_draws(rollout, key_NR.key("position"))
    span_NRL = span_NL[:, None].expand_as(draw_NRL)
    one_NRL = smallest(draw_NRL, span_NRL, torch.ones_like(time_NR, dtype=torch.long))
    return (span_NRL & (draw_NRL < time_NR[..., None])) | one_NRL


def uniform_weights(masked_NRL: Tensor) -> Masks:
    """The masks, every position of weight 1."""
    return Masks(masked_NRL, torch.ones_like(masked_NRL, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class SpacedTime(MaskDistribution):
    """One row; t_1 ~ U(0, 1) a sample, t_n = t_1 + (n-1)/(mu-1) (1 - t_1): the last update is fully masked (UniGRPO).

    With one update, t = t_1.
    """

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        first_N1 = row_draws(rollout, uniforms.key("first time"), 1).draw()
        time_N1 = first_N1 + update / max(1, updates - 1) * (1 - first_N1)
        return uniform_weights(
            _bernoulli(rollout, span_NL, row_draws(rollout, uniforms.key("mask", update), 1), time_N1)
        )


@dataclass(frozen=True, kw_only=True)
class RandomTimes(MaskDistribution):
    """Independent rows, each position masked with probability t ~ U(low, high)."""

    count: int
    low: float = 0.0
    high: float = 1.0

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        key_NR = row_draws(rollout, uniforms.key("mask", update), self.count)
        time_NR = self.low + (self.high - self.low) * key_NR.key("time").draw()
        return uniform_weights(_bernoulli(rollout, span_NL, key_NR, time_NR))


@dataclass(frozen=True, kw_only=True)
class StratifiedTimes(MaskDistribution):
    """Rows n = 0..count-1 with t ~ U(n, n+1] / count."""

    count: int

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        key_NR = row_draws(rollout, uniforms.key("mask", update), self.count)
        stratum_R = torch.arange(self.count, device=span_NL.device)
        time_NR = (stratum_R + 1 - key_NR.key("time").draw()) / self.count
        return uniform_weights(_bernoulli(rollout, span_NL, key_NR, time_NR))


@dataclass(frozen=True, kw_only=True)
class UniformCounts(MaskDistribution):
    """Independent rows of l ~ U{1..len} masked positions of weight len / (l · rows): ELBO, unbiased (2502.09992)."""

    count: int

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        key_NR = row_draws(rollout, uniforms.key("mask", update), self.count)
        length_N1 = span_NL.sum(1, keepdim=True)
        masked_NR = (key_NR.key("count").draw() * length_N1).long() + 1
        weight_NR = length_N1 / (masked_NR.double() * self.count)
        return Masks(_exactly(rollout, span_NL, key_NR, masked_NR), weight_NR[..., None])


@dataclass(frozen=True, kw_only=True)
class InverseTimes(MaskDistribution):
    """Independent rows, each position masked with probability t ~ U(0, 1], weighing 1 / (t · rows): ELBO, unbiased.

    A row may mask nothing (2502.09992).
    """

    count: int

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        key_NR = row_draws(rollout, uniforms.key("mask", update), self.count)
        time_NR1 = 1 - key_NR.key("time").draw()[..., None]
        masked_NRL = span_NL[:, None] & (position_draws(rollout, key_NR.key("position")) < time_NR1)
        return Masks(masked_NRL, 1 / (time_NR1 * self.count))


# Gauss-Legendre on [0, 1]: nodes t_n and weights w_n.
QUADRATURE = {
    1: ((0.5,), (1.0,)),
    2: ((0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2), (0.5, 0.5)),
    3: ((0.5 - 0.6**0.5 / 2, 0.5, 0.5 + 0.6**0.5 / 2), (5 / 18, 8 / 18, 5 / 18)),
}


@dataclass(frozen=True, kw_only=True)
class QuadratureNodes(MaskDistribution):
    """A row a node t_n of max(1, floor(t_n len)) masked positions, each weighing w_n / t_n (GDPO 2510.08554).

    `empirical`: w_n len / count in place of w_n / t_n, which removes the bias of the floor.
    """

    nodes: int = 3
    empirical: bool = False

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        node_R, weight_R = torch.tensor(QUADRATURE[self.nodes], dtype=torch.float64, device=span_NL.device)
        length_N1 = span_NL.sum(1, keepdim=True)
        count_NR = (node_R * length_N1).long().clamp(min=1)
        weight_NR = weight_R * length_N1 / count_NR if self.empirical else (weight_R / node_R).expand(count_NR.shape)
        key_NR = row_draws(rollout, uniforms.key("mask", update), self.nodes)
        return Masks(_exactly(rollout, span_NL, key_NR, count_NR), weight_NR[..., None])


@dataclass(frozen=True, kw_only=True)
class CoupledCounts(MaskDistribution):
    """Pairs of rows: c positions, and the others; weights (len+1)/c and (len+1)/(len-c), halved (ESPO).

    c = round(k + j (len+1)/G) mod (len+1), k ~ U{0..len} a group and pair, j the sample: uniform on 0..len for each
    sample, stratified over the group. Unbiased for the ELBO (2512.03759).
    """

    pairs: int = 2

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        key = uniforms.key("mask", update)
        pair_R = torch.arange(self.pairs, device=span_NL.device)
        sizes_N1 = span_NL.sum(1, keepdim=True) + 1
        start_NR = (key.key("count", rollout.prompt_N[:, None], pair_R).draw() * sizes_N1).floor()
        shift_N1 = rollout.sample_N[:, None] * sizes_N1 / rollout.group_size
        # Half up: rounding halves to even, as published, would favour even counts.
        count_NR = (start_NR + shift_N1 + 0.5).floor().long() % sizes_N1
        subset_NRL = _exactly(rollout, span_NL, row_draws(rollout, key, self.pairs), count_NR)
        rest_NRL = span_NL[:, None] & ~subset_NRL
        masked_NRL = torch.stack([subset_NRL, rest_NRL], dim=2).flatten(1, 2)
        weight_NR1 = sizes_N1[..., None] / (2 * self.pairs * masked_NRL.sum(2, keepdim=True).clamp(min=1).double())
        return Masks(masked_NRL, weight_NR1)


@dataclass(frozen=True, kw_only=True)
class FullAndPair(MaskDistribution):
    """Three rows: all masked; a subset S, each position with probability t; its complement (coupled-GRPO 2506.20639).

    One t ~ U(low, high) an update. Weights 1/2, 1/(2t) on S, 1/(2(1-t)) on its complement: 3/2 a token in expectation.
    """

    low: float = 0.2
    high: float = 0.8

    def __call__(self, rollout: Rollout, span_NL: Tensor, uniforms: Uniforms, update: int, updates: int) -> Masks:
        time = self.low + (self.high - self.low) * uniforms.key("time", update).draw().to(span_NL.device)
        draw_N1L = position_draws(rollout, row_draws(rollout, uniforms.key("mask", update), 1))
        subset_NL = span_NL & (draw_N1L[:, 0] < time)
        masked_NRL = torch.stack([span_NL, subset_NL, span_NL & ~subset_NL], dim=1)
        weight_R = torch.stack([torch.full_like(time, 0.5), 0.5 / time, 0.5 / (1 - time)])
        return Masks(masked_NRL, weight_R[:, None].expand_as(masked_NRL))
