"""Exact ELBO, EUBO and log p on the toy by enumeration of all masks, and the methods' estimates beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product
from math import comb, log

import torch
from torch import Tensor

from unmask.methods.base import Method
from unmask.objective.likelihood import EUBO, row_logp, weighted_sum
from unmask.objective.term import Term
from unmask.oracle.toy import COMPLETIONS, LENGTH, MASK, PROMPT, Toy, with_prompt
from unmask.types import Rollout, ScoringBatch
from unmask.uniforms import Uniforms

MASKS = [mask for mask in product((False, True), repeat=LENGTH) if any(mask)]


def mask_probability(mask: tuple[bool, ...]) -> float:
    """Probability of a mask: its count is uniform over 1..L, then its subset is uniform among that size."""
    return 1 / (LENGTH * comb(LENGTH, sum(mask)))


def every_mask(rows_weight: dict[tuple[bool, ...], float]) -> ScoringBatch:
    """A ScoringBatch of all completions under all masks: a unit per completion, a row per (completion, mask).

    `rows_weight`: token weight of the rows of each mask.
    """
    completions = with_prompt(COMPLETIONS)
    masked_RL = torch.nn.functional.pad(torch.tensor(list(rows_weight)), (PROMPT, 0)).repeat(len(completions), 1)
    weight_R1 = torch.tensor(list(rows_weight.values()), dtype=torch.float64).repeat(len(completions))[:, None]
    tokens_RL = completions.repeat_interleave(len(rows_weight), dim=0)
    row_R = torch.arange(len(tokens_RL))
    return ScoringBatch(
        inputs_FL=tokens_RL.masked_fill(masked_RL, MASK),
        attention_FL=torch.ones_like(masked_RL),
        forward_R=row_R,
        targets_RL=tokens_RL,
        scored_RL=masked_RL,
        token_weight_RL=masked_RL * weight_R1,
        unit_R=row_R // len(rows_weight),
        advantage_U=torch.ones(len(completions), dtype=torch.float64),
        length_U=torch.full((len(completions),), LENGTH),
    )


def exact_elbo(toy: Toy) -> Tensor:
    """ELBO of every completion [27]: sum over masks of p(mask) · L / |mask| · sum of logp over it."""
    batch = every_mask({mask: mask_probability(mask) * LENGTH / sum(mask) for mask in MASKS})
    return weighted_sum(row_logp(toy, batch), batch).value_UK[:, 0].detach()


def exact_eubo(toy: Toy, beta: float) -> Tensor:
    """EUBO of every completion [27]: 1/beta · sum_k log E over masks of L / |mask| 1[k masked] p_k^beta (SPG)."""
    rows = {mask: len(MASKS) * mask_probability(mask) * LENGTH / sum(mask) for mask in MASKS}
    batch = every_mask(rows)
    return LENGTH * EUBO(beta=beta)(row_logp(toy, batch), batch).value_UK[:, 0].detach()


def exact_logp(toy: Toy) -> Tensor:
    """log p of every completion [27] under random order, one token a step."""
    batch = every_mask(dict.fromkeys(MASKS, 1.0))
    logp_UML = row_logp(toy, batch).detach().view(len(COMPLETIONS), len(MASKS), -1)
    orders = list(permutations(range(LENGTH)))
    by_order = []
    for order in orders:
        left = [tuple(position in order[step:] for position in range(LENGTH)) for step in range(LENGTH)]
        steps = [logp_UML[:, MASKS.index(mask), PROMPT + order[step]] for step, mask in enumerate(left)]
        by_order.append(torch.stack(steps).sum(0))
    return torch.stack(by_order).logsumexp(0) - log(len(orders))


def many_rollouts(copies: int) -> Rollout:
    """A Rollout with every completion `copies` times, each a sample with its own draws, written left to right."""
    tokens_NL = with_prompt(COMPLETIONS).repeat_interleave(copies, dim=0)
    place_L = torch.arange(PROMPT + LENGTH) - PROMPT
    region_NL = (place_L >= 0).expand_as(tokens_NL)
    return Rollout(
        tokens_NL=tokens_NL,
        attention_NL=torch.ones_like(region_NL),
        completion_NL=region_NL,
        block_NL=region_NL.long() - 1,
        revealed_at_NL=place_L.clamp(min=-1).expand_as(tokens_NL),
        sampled_logp_NL=torch.zeros(tokens_NL.shape),
        confidence_NL=torch.zeros(tokens_NL.shape),
        prompt_N=torch.arange(len(tokens_NL)) // copies,
        sample_N=torch.arange(len(tokens_NL)) % copies,
        prompt_length=PROMPT,
        group_size=copies,
        steps=LENGTH,
        temperature=1.0,
        mask_id=MASK,
        remasking=False,
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Summary of a method's log-likelihood estimates over completions drawn from the toy, in nats."""

    mean: float
    to_elbo: float  # mean minus the exact ELBO's
    to_logp: float  # mean minus log p's
    deviation: float  # standard deviation over masks
    above: float  # share of completions whose mean estimate is above log p


def estimated_logp(toy: Toy, term: Term, copies: int, seed: int, sign: float = 1.0) -> Tensor:
    """Estimates [27, copies] of a term's likelihood, summed over tokens; `sign`: of the advantage, which SPG reads."""
    rollout = many_rollouts(copies)
    advantage = torch.full((len(COMPLETIONS), copies), sign, dtype=torch.float64)
    batch = term.masking(rollout, advantage, Uniforms().key("estimate", seed), 0, 1)
    with torch.no_grad():
        value_UK = term.likelihood(row_logp(toy, batch), batch).value_UK
    per_unit_U = value_UK.sum(1)
    if term.likelihood is not weighted_sum and value_UK.shape[1] == 1:  # a mean per token
        per_unit_U = per_unit_U * LENGTH
    return per_unit_U.view(len(COMPLETIONS), copies, -1).sum(2)


def estimates(
    toy: Toy, methods: dict[str, Method], copies: int, on_done: Callable[[], object] = lambda: None
) -> dict[str, Estimate]:
    """The Estimate of every method that scores whole completions; SPG for good and for bad samples.

    `on_done` is called after each method.
    """
    elbo, logp = exact_elbo(toy), exact_logp(toy)
    probability_U = logp.exp()
    table = {}
    for name, method in methods.items():
        term = method.terms(toy.eos_id)[0]
        for label, sign in ((name, 1.0), (f"{name}, bad samples", -1.0)):
            if sign < 0 and name != "spg":
                continue
            value = estimated_logp(toy, term, copies, 0, sign)
            mean = value.mean(1)
            table[label] = Estimate(
                mean=float(probability_U @ mean),
                to_elbo=float(probability_U @ (mean - elbo)),
                to_logp=float(probability_U @ (mean - logp)),
                deviation=float((probability_U @ value.var(1)).sqrt()),
                above=float(probability_U @ (mean > logp).double()),
            )
        on_done()
    return table
