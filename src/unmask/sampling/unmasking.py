"""Unmasking rules: which masked positions a denoising step commits (and, for RCR, which it masks again).

A rule is settings plus one call on what the step has seen; it knows no model and no loop. This module imports no torch,
so that commands can list rules and their options at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from unmask.errors import UserError
from unmask.validation import setting

if TYPE_CHECKING:
    from torch import Tensor

    from unmask.uniforms import Uniforms

# (logits_CV, log-normalizer_C, token_CK) -> confidence_CK, at temperature 1, larger is surer
Measure = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


def probability(logits_CV: Tensor, normalizer_C: Tensor, token_CK: Tensor) -> Tensor:
    """p(proposed token)."""
    return (logits_CV.gather(1, token_CK) - normalizer_C[:, None]).exp()


def margin(logits_CV: Tensor, normalizer_C: Tensor, token_CK: Tensor) -> Tensor:
    """p(best token) - p(second best)."""
    best_C2 = (logits_CV.topk(2, dim=1).values - normalizer_C[:, None]).exp()
    return (best_C2[:, :1] - best_C2[:, 1:]).expand(token_CK.shape)


def negative_entropy(logits_CV: Tensor, normalizer_C: Tensor, token_CK: Tensor) -> Tensor:
    """sum_v p log p, in nats: at most 0."""
    logp_CV = logits_CV - normalizer_C[:, None]
    return (logp_CV.exp() * logp_CV).sum(1, keepdim=True).expand(token_CK.shape)


MEASURES: dict[str, Measure] = {"probability": probability, "margin": margin, "entropy": negative_entropy}


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a step has seen of its candidates (the active block; all up to its end where a rule reopens blocks)."""

    masked_NC: Tensor
    confidence_NC: Tensor  # of the proposals now
    running_NC: Tensor  # latest (or largest) confidence of each position so far
    position_NC: Tensor  # from the completion's start
    count: int  # to commit now, by the schedule
    remaining: int  # to stay masked after this step, by the schedule
    uniforms: Uniforms  # keyed by sample and step


class Unmasking(Protocol):
    """A rule: `measure` gives confidences, the call says which candidates are masked after the step."""

    name: ClassVar[str]
    adaptive: ClassVar[bool]  # commits as many as it likes: a block ends when it is full
    scheduled: ClassVar[bool]  # reads the schedule's counts: a block has no more steps than scheduled
    remasks: ClassVar[bool]

    @property
    def measure(self) -> Measure: ...

    def __call__(self, observation: Observation) -> Tensor:
        """masked_NC after the step."""


def _rank(score_NC: Tensor) -> Tensor:
    """Rank of each column, 0 for the largest score; ties go to the lower column."""
    return score_NC.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _masked_score(score_NC: Tensor, masked_NC: Tensor) -> Tensor:
    return score_NC.masked_fill(~masked_NC, -float("inf"))


def _keep_all_but_best(score_NC: Tensor, observation: Observation) -> Tensor:
    return observation.masked_NC & (_rank(_masked_score(score_NC, observation.masked_NC)) >= observation.count)


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """What most rules have in common: they follow the schedule, never mask again, and measure probabilities."""

    adaptive: ClassVar[bool] = False
    scheduled: ClassVar[bool] = True
    remasks: ClassVar[bool] = False

    @property
    def measure(self) -> Measure:
        return probability


@dataclass(frozen=True, kw_only=True)
class LowConfidence(_Plain):
    """Commit the scheduled number of most probable proposals (low-confidence remasking, LCR; LLaDA 2502.09992)."""

    name: ClassVar[str] = "low_confidence"

    def __call__(self, observation: Observation) -> Tensor:
        return _keep_all_but_best(observation.confidence_NC, observation)


@dataclass(frozen=True, kw_only=True)
class TopKMargin(LowConfidence):
    """Commit where the best token leads the second by most."""

    name: ClassVar[str] = "margin"

    @property
    def measure(self) -> Measure:
        return margin


@dataclass(frozen=True, kw_only=True)
class Entropy(LowConfidence):
    """Commit where the prediction has least entropy (Dream 2508.15487)."""

    name: ClassVar[str] = "entropy"

    @property
    def measure(self) -> Measure:
        return negative_entropy


@dataclass(frozen=True, kw_only=True)
class Random(_Plain):
    """Commit the scheduled number at random positions, each order equally likely."""

    name: ClassVar[str] = "random"

    def __call__(self, observation: Observation) -> Tensor:
        return _keep_all_but_best(observation.uniforms.key("order", observation.position_NC).draw(), observation)


@dataclass(frozen=True, kw_only=True)
class LeftToRight(_Plain):
    """Commit the scheduled number of leftmost positions; the confidence recorded is minus the entropy."""

    name: ClassVar[str] = "left_to_right"

    @property
    def measure(self) -> Measure:
        return negative_entropy

    def __call__(self, observation: Observation) -> Tensor:
        return _keep_all_but_best(-observation.position_NC.expand_as(observation.confidence_NC).double(), observation)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise UserError(f"unmasking threshold {threshold} is not in (0, 1]: give a probability such as 0.9")


def _keep_improbable(threshold: float, at_least: int, observation: Observation) -> Tensor:
    score_NC = _masked_score(observation.confidence_NC, observation.masked_NC)
    return observation.masked_NC & ~((score_NC >= threshold) | (_rank(score_NC) < at_least))


@dataclass(frozen=True, kw_only=True)
class Threshold(_Plain):
    """Commit every proposal with probability >= threshold, at least the best one (Fast-dLLM 2505.22618)."""

    name: ClassVar[str] = "threshold"
    adaptive: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False
    threshold: float = setting(0.9, "probability from which a proposal is committed")

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, observation: Observation) -> Tensor:
        return _keep_improbable(self.threshold, 1, observation)


@dataclass(frozen=True, kw_only=True)
class ScheduledThreshold(_Plain):
    """Commit every proposal with probability >= threshold, at least the scheduled number (LLaDA2 2512.15745)."""

    name: ClassVar[str] = "scheduled_threshold"
    adaptive: ClassVar[bool] = True
    threshold: float = setting(0.95, "probability from which a proposal is committed")

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, observation: Observation) -> Tensor:
        return _keep_improbable(self.threshold, observation.count, observation)


@dataclass(frozen=True, kw_only=True)
class Factor(_Plain):
    """Commit the r most probable while v_r >= 1 - factor / (r + 1), at least the best one (Fast-dLLM 2505.22618)."""

    name: ClassVar[str] = "factor"
    adaptive: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False
    factor: float = setting(1.0, "the larger, the more are committed at once")

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise UserError(f"unmasking factor {self.factor} is not positive: give a number such as 1.0")

    def __call__(self, observation: Observation) -> Tensor:
        score_NC = _masked_score(observation.confidence_NC, observation.masked_NC)
        rank_NC = _rank(score_NC)
        # Rank 0 is r = 1. v_r falls and its threshold rises with r, so "while" needs no more.
        fits_NC = (score_NC >= 1 - self.factor / (rank_NC + 2)) | (rank_NC == 0)
        return observation.masked_NC & ~fits_NC


@dataclass(frozen=True, kw_only=True)
class RunningConfidence(_Plain):
    """Fill all, then mask again the least confident so far: running confidence remasking, RCR (MDPO 2508.13148).

    The authors' code has statistic latest and scope completion, in which earlier blocks reopen.
    """

    name: ClassVar[str] = "rcr"
    remasks: ClassVar[bool] = True
    confidence: str = setting("probability", "of the proposals: probability, margin or entropy")
    statistic: str = setting("latest", "latest or max confidence of a position over the steps that predicted it")
    scope: str = setting("block", "candidates: the current block, or the completion up to its end")

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("confidence", self.confidence, tuple(MEASURES)),
            ("statistic", self.statistic, ("latest", "max")),
            ("scope", self.scope, ("block", "completion")),
        ):
            if value not in allowed:
                raise UserError(f"rcr {field} {value!r} is unknown: give one of {', '.join(allowed)}")

    @property
    def measure(self) -> Measure:
        return MEASURES[self.confidence]

    def __call__(self, observation: Observation) -> Tensor:
        return _rank(-observation.running_NC) < observation.remaining


RULES: dict[str, type[Unmasking]] = {
    rule.name: rule
    for rule in (
        LowConfidence,
        TopKMargin,
        Entropy,
        Random,
        LeftToRight,
        Threshold,
        ScheduledThreshold,
        Factor,
        RunningConfidence,
    )
}


# ---- schedules: how many positions of a block of `masks` each of its steps commits ----
