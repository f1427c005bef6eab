"""Log-probs of a scoring batch's targets, and likelihoods: how they become a score per token or per unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import ContrastiveLogProb, TargetLogProb
from unmask.types import ScoringBatch

# logp_RL -> d loss / d logp_RL
GradLogp = Callable[[Tensor], Tensor]


def row_logp(denoiser: nn.Module, batch: ScoringBatch, grad_logp: GradLogp | None = None) -> Float[Tensor, "R L"]:
    """log p(target | input) at the scored positions of every row, 0 elsewhere.

    Makes F forwards; the head runs at positions where some row is scored. `grad_logp`: the derivative of the loss by
    these log-probs, of a loss that is elementwise in them (`Term.is_elementwise`); the head's gradient is then made in
    the forward pass, and `backward` must be called on that very loss.
    """
    queries = _Queries.of(batch)
    targets_QK = queries.from_rows(batch.targets_RL)
    grad_chunk = None if grad_logp is None else _GradLogpOfChunk(grad_logp, batch, queries)
    reducer = TargetLogProb(targets_QK, batch.temperature, grad_chunk)
    (logp_QK,) = denoiser(batch.inputs_FL, batch.attention_FL, queries.query_FA, reducer, selected_Q=queries.selected_Q)
    return queries.to_rows(logp_QK) * batch.scored_RL


@dataclass(frozen=True, kw_only=True)
class _Queries:
    """Query positions of a batch, Q of them, with K targets each: rows of one forward take one target each.

    Moves values between rows [R, L] and query positions [Q, K].
    """

    query_FA: Tensor
    selected_Q: Tensor  # query positions, among the F times A, at which some row is scored
    forward_R: Tensor
    slot_R: Tensor
    slots: int
    length: int

    @staticmethod
    def of(batch: ScoringBatch) -> _Queries:
        query_FA, counted_FA = query_columns(batch)
        slot_R = _slots(batch.forward_R)
        return _Queries(
            query_FA=query_FA,
            selected_Q=torch.nonzero(counted_FA.flatten())[:, 0],
            forward_R=batch.forward_R,
            slot_R=slot_R,
            slots=int(slot_R.max()) + 1,
            length=batch.inputs_FL.shape[1],
        )

    def from_rows(self, value_RL: Tensor) -> Tensor:
        """The rows' values at the query positions, [Q, K]; 0 in slots that no row has."""
        value_FKA = value_RL.new_zeros((len(self.query_FA), self.slots, self.query_FA.shape[1]))
        value_FKA[self.forward_R, self.slot_R] = value_RL.gather(1, self.query_FA[self.forward_R])
        return value_FKA.transpose(1, 2).flatten(0, 1)[self.selected_Q]

    def to_rows(self, value_QK: Tensor) -> Tensor:
        """Values at the query positions, in the rows that they belong to, [R, L]; 0 elsewhere."""
        forwards, columns = self.query_FA.shape
        value_FAK = value_QK.new_zeros((forwards * columns, self.slots)).index_copy(0, self.selected_Q, value_QK)
        value_RA = value_FAK.view(forwards, columns, -1).transpose(1, 2)[self.forward_R, self.slot_R]
        value_RL = value_RA.new_zeros((len(value_RA), self.length))
        return value_RL.scatter(1, self.query_FA[self.forward_R], value_RA)


@dataclass(frozen=True)
class _GradLogpOfChunk:
    """d loss / d logp of one chunk of query positions, the others set to 0: of elementwise losses only."""

    grad_logp: GradLogp
    batch: ScoringBatch
    queries: _Queries

    def __call__(self, logp_CK: Tensor, chunk: slice) -> Tensor:
        logp_QK = logp_CK.new_zeros((len(self.queries.selected_Q), self.queries.slots))
        logp_QK[chunk] = logp_CK
        logp_RL = self.queries.to_rows(logp_QK) * self.batch.scored_RL
        return self.queries.from_rows(self.grad_logp(logp_RL) * self.batch.scored_RL)[chunk]


def query_columns(batch: ScoringBatch) -> tuple[Int[Tensor, "F A"], Bool[Tensor, "F A"]]:
    """Columns where some row of the forward is scored, and which of them count.

    A is the largest number in any forward; forwards with fewer are filled up with columns that do not count.
    """
    scored_FL = torch.zeros(batch.inputs_FL.shape, dtype=torch.long, device=batch.inputs_FL.device)
    scored_FL = scored_FL.index_add(0, batch.forward_R, batch.scored_RL.long()) > 0
    width = max(1, int(scored_FL.sum(1).max()))
    query_FA = scored_FL.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return query_FA, scored_FL.gather(1, query_FA)


def _slots(forward_R: Int[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Place of each row among those of its forward (rows of a forward are neighbours)."""
    row_R = torch.arange(len(forward_R), device=forward_R.device)
    first_R = torch.searchsorted(forward_R, forward_R)
    return row_R - first_R


def row_contrast(denoiser: Denoiser, batch: ScoringBatch, old: Denoiser | None, blend: float) -> Float[Tensor, "R L 2"]:
    """log-probs of the targets under logits (1-b) old + b now, and under (1+b) old - b now (LFPO 2603.01563).

    `old` None: the denoiser itself, detached. For batches of one row a forward.
    """
    queries = _Queries.of(batch)
    reducer = ContrastiveLogProb(queries.from_rows(batch.targets_RL)[:, 0], blend)
    (logp_Q2,) = denoiser(
        batch.inputs_FL,
        batch.attention_FL,
        queries.query_FA,
        reducer,
        other_model=old or denoiser,
        selected_Q=queries.selected_Q,
    )
    columns = [queries.to_rows(logp_Q1) for logp_Q1 in logp_Q2.split(1, dim=1)]
    return torch.stack(columns, dim=2) * batch.scored_RL[..., None]


# ---- likelihoods: from log-probs to scores ----


class Scores(NamedTuple):
    """Scores of units (log-probs of tokens or sequences), the weight of each in the loss, and which metrics count."""

    value_UK: Tensor
    loss_weight_UK: Tensor
    counted_UK: Tensor | None = None  # None: those of positive weight


@runtime_checkable
class Likelihood(Protocol):
    """(logp_RL, batch) -> Scores, and what a Term must know: how scores depend on the log-probs.

    Implement it explicitly, and set the traits that differ from these defaults, which are safe: at worst slower.
    `FromFunction` makes one of a plain function.
    """

    elementwise: ClassVar[bool] = False  # a score depends on one log-prob, and no two on the same: it is a token's
    linear: ClassVar[bool] = False  # d score / d log-prob does not depend on the log-probs

    def __call__(self, logp_RL: Tensor, batch: ScoringBatch, /) -> Scores: ...


@dataclass(frozen=True)
class FromFunction(Likelihood):
    """The likelihood that a plain function or `partial` computes, with its traits: `FromFunction(f, linear=True)`."""

    function: Callable[[Tensor, ScoringBatch], Scores]
    elementwise: bool = False
    linear: bool = False

    def __call__(self, logp_RL: Tensor, batch: ScoringBatch) -> Scores:
        return self.function(logp_RL, batch)


def _by_unit(value_R: Float[Tensor, "R *K"], batch: ScoringBatch) -> Float[Tensor, "U *K"]:
    """Sums over the rows of each unit."""
    sums = torch.zeros((len(batch.advantage_U), *value_R.shape[1:]), dtype=value_R.dtype, device=value_R.device)
    return sums.index_add(0, batch.unit_R, value_R)


def _one_each(value_U: Float[Tensor, "U *two"], weight_U: Tensor | None = None) -> Scores:
    """Scores of whole units (K = 1, or the two of a contrast), one weight a unit."""
    value_UK = value_U if value_U.ndim == 2 else value_U[:, None]
    loss_weight_UK = torch.ones_like(value_UK) if weight_U is None else weight_U[:, None].to(value_UK.dtype)
    return Scores(value_UK, loss_weight_UK)


@dataclass(frozen=True)
class PerToken(Likelihood):
    """One score a token: every unit is one row, K = L; token_weight_RL weighs the tokens in the loss."""

    elementwise: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        return Scores(logp_RL, batch.token_weight_RL, batch.scored_RL)


@dataclass(frozen=True)
class PerTokenOverRows(Likelihood):
    """One score a token, sum over the unit's rows of weight · logp, K = L (coupled-GRPO 2506.20639)."""

    linear: ClassVar[bool] = True

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        counted_UL = _by_unit(batch.scored_RL.to(logp_RL.dtype), batch) > 0
        return Scores(_by_unit(batch.token_weight_RL * logp_RL, batch), counted_UL.to(logp_RL.dtype))


@dataclass(frozen=True)
class WeightedSum(Likelihood):
    """sum over the unit's rows of weight · logp: an ELBO in nats where the masking's weights make it one."""

    linear: ClassVar[bool] = True

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        return _one_each(_by_unit((batch.token_weight_RL * logp_RL).sum(1), batch))


@dataclass(frozen=True)
class ELBO(Likelihood):
    """ELBO / length: the weighted sum over the unit's rows of weight · logp, per token of its span."""

    linear: ClassVar[bool] = True

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        return _one_each(weighted_sum(logp_RL, batch).value_UK[:, 0] / batch.length_U.clamp(min=1))


@dataclass(frozen=True)
class MaskedMean(Likelihood):
    """mean over the unit's rows of the mean of logp over a row's scored tokens (SPG's lower bound, UniGRPO, LFPO)."""

    linear: ClassVar[bool] = True

    def __call__(self, logp_RL: Float[Tensor, "R L *two"], batch: ScoringBatch) -> Scores:
        tokens_R = batch.scored_RL.sum(1).clamp(min=1).to(logp_RL.dtype)
        rows_U = _by_unit(torch.ones_like(tokens_R), batch)
        shape = (-1, *[1] * (logp_RL.ndim - 2))
        return _one_each(_by_unit(logp_RL.sum(1) / tokens_R.view(shape), batch) / rows_U.view(shape))


@dataclass(frozen=True, kw_only=True)
class EUBO(Likelihood):
    """(1/beta) mean_k log mean_rows w_k p_k^beta over the tokens scored in some row, w = 1 / masked fraction (SPG).

    A Rényi bound from above: above log p for beta >= L, not always below (2510.09541).
    """

    beta: float

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        power_RL = (self.beta * logp_RL + batch.token_weight_RL.clamp(min=1e-30).log()).masked_fill(
            ~batch.scored_RL, -torch.inf
        )
        rows_U = _by_unit(torch.ones_like(logp_RL[:, 0]), batch)
        largest_UL = power_RL.new_full((len(batch.advantage_U), power_RL.shape[1]), -torch.inf).scatter_reduce(
            0, batch.unit_R[:, None].expand_as(power_RL), power_RL.detach(), "amax"
        )
        counted_UL = largest_UL > -torch.inf
        shift_UL = largest_UL.masked_fill(~counted_UL, 0.0)
        sums_UL = _by_unit((power_RL - shift_UL[batch.unit_R]).exp(), batch)
        log_UL = (sums_UL.masked_fill(~counted_UL, 1.0).log() + shift_UL - rows_U.log()[:, None]) * counted_UL
        return _one_each(log_UL.sum(1) / (self.beta * counted_UL.sum(1).clamp(min=1)))


@dataclass(frozen=True, kw_only=True)
class Sandwich(Likelihood):
    """ELBO where A >= 0, else mix · EUBO + (1 - mix) · ELBO; a unit weighs as much as it is long (SPG 2510.09541)."""

    beta: float
    mix: float

    def __call__(self, logp_RL: Float[Tensor, "R L"], batch: ScoringBatch) -> Scores:
        lower_U = masked_mean(logp_RL, batch).value_UK[:, 0]
        upper_U = EUBO(beta=self.beta)(logp_RL, batch).value_UK[:, 0]
        mixed_U = self.mix * upper_U + (1 - self.mix) * lower_U
        return _one_each(torch.where(batch.advantage_U >= 0, lower_U, mixed_U), batch.length_U)


per_token = PerToken()
per_token_over_rows = PerTokenOverRows()
weighted_sum = WeightedSum()
elbo = ELBO()
masked_mean = MaskedMean()


# ---- normalizers: what the sum over units is divided by ----


def token_count(batch: ScoringBatch) -> Float[Tensor, ""]:
    """Number of tokens in the units' spans, a scalar: makes the loss a mean over tokens."""
    return batch.length_U.sum().float()


def unit_count(batch: ScoringBatch) -> Float[Tensor, ""]:
    """Number of units, a scalar: makes the loss a mean over units."""
    return torch.tensor(float(len(batch.advantage_U)), device=batch.advantage_U.device)


def scored_unit_count(batch: ScoringBatch) -> Float[Tensor, ""]:
    """Number of units with something scored, a scalar: makes the loss a mean over those units."""
    return batch.scored_U.sum().float()


def active_unit_count(batch: ScoringBatch) -> Float[Tensor, ""]:
    """Number of units with a nonzero advantage and something scored, a scalar."""
    return ((batch.advantage_U != 0) & batch.scored_U).sum().float()
