"""Unmasking rules: which masked positions a denoising step commits (and, for RCR, which it masks again).

A rule is one frozen dataclass: settings, traits, and one call on what the step has observed; it knows no model and no
loop. This module imports no torch, so that commands can list rules and their options at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.errors import UserError
from unmask.validation import one_of, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Confidence of proposed tokens [C, K] from logits [C, V], their log-normalizers [C] and the tokens' ids [C, K].

    Logits are those at temperature 1, that of the mask token -1e30: it is never proposed, and keeps its part in the
    normalizer alone. The larger, the surer. `reads_all_logits` False: it needs those of the proposals
    alone, and may be given nothing else (V = K then, and ids are places among them): sampling never holds the others.
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    reads_all_logits: bool = True

    def __call__(self, logits_CV: Tensor, normalizer_C: Tensor, token_CK: Tensor) -> Tensor:
        return self.function(logits_CV, normalizer_C, token_CK)


def _probability(logits_CV: Tensor, normalizer_C: Tensor, token_CK: Tensor) -> Tensor:
    return (logits_CV.gather(1, token_CK) - normalizer_C[:, None]).exp()


def _margin(logits_CV: Tensor, normalizer_C: Tensor, token_CK: Tensor) -> Tensor:
    best_C2 = (logits_CV.topk(2, dim=1).values - normalizer_C[:, None]).exp()
    return (best_C2[:, :1] - best_C2[:, 1:]).expand(token_CK.shape)


def _negative_entropy(logits_CV: Tensor, normalizer_C: Tensor, token_CK: Tensor) -> Tensor:
    logp_CV = logits_CV - normalizer_C[:, None]
    return (logp_CV.exp() * logp_CV).sum(1, keepdim=True).expand(token_CK.shape)


probability = Measure(function=_probability, reads_all_logits=False)  # p(proposed token)
margin = Measure(function=_margin)  # p(best token) - p(second best)
negative_entropy = Measure(function=_negative_entropy)  # sum_v p log p, in nats: at most 0

MEASURES: dict[str, Measure] = {"probability": probability, "margin": margin, "entropy": negative_entropy}

# Running statistics: (confidence so far, confidence now) -> confidence so far, at positions that are masked now.
STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "latest": lambda before_NC, now_NC: now_NC,
    "max": lambda before_NC, now_NC: before_NC.maximum(now_NC),
}


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a step has seen of its candidates: the active block, or all up to its end (the rule's `candidates`).

    Where a block is cut short, columns that are no candidates are among them: they count as not masked.
    """

    masked_NC: Tensor
    token_NC: Tensor  # proposed now; 0 where not masked
    confidence_NC: Tensor  # of the proposals now; 0 where not masked
    running_NC: Tensor  # latest (or largest) confidence of each position so far; inf at what is no candidate
    position_NC: Tensor  # from the completion's start
    count: int  # to commit now, by the schedule
    remaining: int  # to stay masked after this step, by the schedule
    uniforms: Uniforms  # keyed by sample and step
    state: Tensor | None = None  # the rule's own, [N, ...]


@dataclass(frozen=True, kw_only=True)
class Unmasking(ABC):
    """Base of unmasking rules: subclass it as a frozen dataclass, name it, and say which candidates stay masked.

    Class variables and properties are traits with defaults; override those that differ. A rule that is not `adaptive`
    commits exactly the scheduled `observation.count`; an adaptive one as many as it likes, at least one a step, and is
    waited for after every step. A row of what it returns depends on the same row of the observation alone. Example:

        @dataclass(frozen=True, kw_only=True)
        class RightToLeft(Unmasking):
            name: ClassVar[str] = "right_to_left"

            def __call__(self, observation):
                rank_NC = rank(masked_score(observation.position_NC.double(), observation.masked_NC))
                return observation.masked_NC & (rank_NC >= observation.count)
    """

    name: ClassVar[str]
    adaptive: ClassVar[bool] = False  # commits as many as it likes: a block ends when it is full
    scheduled: ClassVar[bool] = True  # reads the schedule's counts; else (adaptive rules only) at most a step a token
    remasks: ClassVar[bool] = False  # masks committed tokens again

    @property
    def candidates(self) -> str:
        """Positions that a step may commit or mask again: the active `block`, or the `completion` up to its end."""
        return "block"

    @property
    def statistic(self) -> str:
        """What `running_NC` holds of each position's confidences: the `latest` or the `max`."""
        return "latest"

    @property
    def measure(self) -> Measure:
        """Confidence of proposed tokens; by default their probability."""
        return probability

    def initial_state(self, samples: int, positions: int, device: torch.device) -> Tensor | None:
        """State of the rule's own before the first step: [N, ...], one row a sample; None: it keeps none.

        Rows follow their samples when others finish or join; they must not depend on one another.
        """
        return None

    @abstractmethod
    def __call__(self, observation: Observation) -> Tensor:
        """masked_NC after the step; what is False and was masked is committed."""

    def next_state(self, observation: Observation) -> Tensor | None:
        """`observation.state` after the step, of the same shape. Change it for positions that are masked alone."""
        return observation.state


def rank(score_NC: Tensor) -> Tensor:
    """Rank of each column, 0 for the largest score; ties go to the lower column."""
    return score_NC.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def masked_score(score_NC: Tensor, masked_NC: Tensor) -> Tensor:
    """The scores, -inf where nothing is masked."""
    return score_NC.masked_fill(~masked_NC, -float("inf"))


def keep_all_but_best(score_NC: Tensor, observation: Observation) -> Tensor:
    """masked_NC after committing the scheduled number of best-scored masked candidates."""
    return observation.masked_NC & (rank(masked_score(score_NC, observation.masked_NC)) >= observation.count)


@dataclass(frozen=True, kw_only=True)
class LowConfidence(Unmasking):
    """Commit the scheduled number of most probable proposals (low-confidence remasking, LCR; LLaDA 2502.09992)."""

    name: ClassVar[str] = "low_confidence"

    def __call__(self, observation: Observation) -> Tensor:
        return keep_all_but_best(observation.confidence_NC, observation)


@dataclass(frozen=True, kw_only=True)
class TopKMargin(LowConfidence):
    """Commit where the probability of the best token exceeds that of the second by most (margin)."""

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
class Random(Unmasking):
    """Commit the scheduled number at random positions, each order equally likely."""

    name: ClassVar[str] = "random"

    def __call__(self, observation: Observation) -> Tensor:
        return keep_all_but_best(observation.uniforms.key("order", observation.position_NC).draw(), observation)


@dataclass(frozen=True, kw_only=True)
class LeftToRight(Unmasking):
    """Commit the scheduled number of leftmost positions; the confidence recorded is minus the entropy."""

    name: ClassVar[str] = "left_to_right"

    @property
    def measure(self) -> Measure:
        return negative_entropy

    def __call__(self, observation: Observation) -> Tensor:
        return keep_all_but_best(-observation.position_NC.expand_as(observation.confidence_NC).double(), observation)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise UserError(f"unmasking threshold {threshold} is not in (0, 1]: give a probability such as 0.9")


def _keep_improbable(threshold: float, at_least: int, observation: Observation) -> Tensor:
    score_NC = masked_score(observation.confidence_NC, observation.masked_NC)
    return observation.masked_NC & ~((score_NC >= threshold) | (rank(score_NC) < at_least))


@dataclass(frozen=True, kw_only=True)
class Threshold(Unmasking):
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
class ScheduledThreshold(Unmasking):
    """Commit every proposal with probability >= threshold, at least the scheduled number (LLaDA2 2512.15745)."""

    name: ClassVar[str] = "scheduled_threshold"
    adaptive: ClassVar[bool] = True
    threshold: float = setting(0.95, "probability from which a proposal is committed")

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, observation: Observation) -> Tensor:
        return _keep_improbable(self.threshold, observation.count, observation)


@dataclass(frozen=True, kw_only=True)
class Factor(Unmasking):
    """Commit the r most probable while v_r >= 1 - factor / (r + 1), at least the best one (Fast-dLLM 2505.22618)."""

    name: ClassVar[str] = "factor"
    adaptive: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False
    factor: float = setting(1.0, "the larger, the more are committed at once")

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise UserError(f"unmasking factor {self.factor} is not positive: give a number such as 1.0")

    def __call__(self, observation: Observation) -> Tensor:
        score_NC = masked_score(observation.confidence_NC, observation.masked_NC)
        rank_NC = rank(score_NC)
        # Rank 0 is r = 1. v_r falls and its threshold rises with r, so "while" needs no more.
        fits_NC = (score_NC >= 1 - self.factor / (rank_NC + 2)) | (rank_NC == 0)
        return observation.masked_NC & ~fits_NC


@dataclass(frozen=True, kw_only=True)
class RunningConfidence(Unmasking):
    """Fill all, then mask again the least confident so far: running confidence remasking, RCR (MDPO 2508.13148).

    The authors' code has statistic latest and scope completion, in which earlier blocks reopen.
    """

    name: ClassVar[str] = "rcr"
    remasks: ClassVar[bool] = True
    confidence: str = setting("probability", "of the proposals: probability, margin or entropy")
    statistic: str = setting("latest", "latest or max confidence of a position over the steps that predicted it")
    scope: str = setting("block", "candidates: the current block, or the completion up to its end")

    def __post_init__(self) -> None:
        one_of("rcr confidence", self.confidence, tuple(MEASURES))
        one_of("rcr statistic", self.statistic, tuple(STATISTICS))
        one_of("rcr scope", self.scope, ("block", "completion"))

    @property
    def candidates(self) -> str:
        return self.scope

    @property
    def measure(self) -> Measure:
        return MEASURES[self.confidence]

    def __call__(self, observation: Observation) -> Tensor:
        return rank(-observation.running_NC) < observation.remaining


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
