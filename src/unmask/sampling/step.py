"""One denoising step: propose tokens at query columns, observe the candidates, commit what the rule says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.denoisers.base import Guidance
from unmask.denoisers.key_values import CacheWindow
from unmask.sampling.columns import Candidates
from unmask.sampling.context import SamplingContext
from unmask.sampling.proposals import Propose
from unmask.sampling.state import SamplerState
from unmask.sampling.unmasking import STATISTICS, Observation
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Numbers of one step that the host knows: shapes follow from them, so that no device is waited for.

    `count` candidates to commit and `remaining` to stay masked, by the schedule; at most `most_masked` candidates are
    masked in any sample, and `most_masked_before` were a step before.
    """

    index: int  # within the block
    count: int
    remaining: int
    most_masked: int
    most_masked_before: int


class Proposals(NamedTuple):
    """Tokens and their log-probs at query columns [N, A, Z]: the sampler's own, then guesses; confidences [N, A]."""

    token_NAZ: Tensor
    logp_NAZ: Tensor
    confidence_NA: Tensor

    def scatter(self, column_NA: Tensor, width: int) -> StepProposal:
        """The sampler's own in rows of `width` columns, those of the queries being `column_NA`; zeros elsewhere."""
        shape = (len(column_NA), width)
        own = (self.token_NAZ[..., 0], self.logp_NAZ[..., 0], self.confidence_NA)
        return StepProposal(*(each.new_zeros(shape).scatter(1, column_NA, each) for each in own))


class StepProposal(NamedTuple):
    """The sampler's own proposals: tokens, log-probs, confidences [N, C]; zeros where nothing was queried."""

    token_NC: Tensor
    logp_NC: Tensor
    confidence_NC: Tensor

    def gather(self, column_NC: Tensor) -> StepProposal:
        """At some columns of each row."""
        return StepProposal(*(each.gather(1, column_NC) for each in self))


# ---- propose ----


def propose(
    context: SamplingContext,
    canvas: SamplerState,
    query_NA: Tensor,
    *,
    group: int = 1,
    guesses: int = 0,
    window: CacheWindow | None = None,
) -> Proposals:
    """One forward of the denoiser: a token and `guesses` further ones drawn at each query column.

    `group`: neighbours whose canvases are equal, and share a row of the forward. `window`: the columns that are run;
    None: all, and nothing is cached.
    """
    uniform_NAZ = _uniforms(context, canvas, query_NA, guesses)
    reducer = Propose(
        temperature=context.temperature,
        mask_id=context.denoiser.mask_id,
        spelt=context.denoiser.spelt,
        holes=context.denoiser.holes,
        measure=context.unmasking.measure,
        uniform_QZ=None if uniform_NAZ is None else _together(uniform_NAZ, group).flatten(0, 1),
        draws=group * (1 + guesses),
        stride=1 + guesses,
    )
    tokens_FL, mask = canvas.tokens[::group], None if canvas.mask is None else canvas.mask[::group]
    guidance = _guidance(context, tokens_FL)
    results = context.denoiser(tokens_FL, mask, query_NA[::group], reducer, guidance=guidance, part=window)
    if group > 1 and window is not None:
        window.cache.take(torch.arange(len(query_NA), device=query_NA.device) // group)
    token_NAZ, logp_NAZ, confidence_NA1 = (_apart(each, group) for each in results)
    return Proposals(token_NAZ, logp_NAZ, confidence_NA1[..., 0])


def step_key(canvas: SamplerState) -> Uniforms:
    """The random key [N, 1] of each sample's step."""
    return Uniforms(canvas.key_N[:, None]).key(canvas.step_N[:, None])


def _uniforms(context: SamplingContext, canvas: SamplerState, query_NA: Tensor, guesses: int) -> Tensor | None:
    """Uniforms [N, A, 1 + guesses] that the tokens are drawn by; None: greedy."""
    if not context.temperature:
        return None
    key, position_NA = step_key(canvas), query_NA - context.layout.start
    uniform_NA1 = key.key("token", position_NA).draw()[..., None]
    if not guesses:
        return uniform_NA1
    guess_Z = torch.arange(guesses, device=query_NA.device)
    guess_key = Uniforms(torch.as_tensor(key.key("guess").state)[..., None]).key(guess_Z).key(position_NA[..., None])
    return torch.cat([uniform_NA1, guess_key.draw()], dim=-1)


def _guidance(context: SamplingContext, tokens_FL: Tensor) -> Guidance | None:
    if not context.guidance_scale:
        return None
    prompt_L = torch.arange(tokens_FL.shape[1], device=tokens_FL.device) < context.layout.start
    return Guidance(scale=context.guidance_scale, prompt_FL=prompt_L.expand_as(tokens_FL))


def _together(value_NAZ: Tensor, group: int) -> Tensor:
    """Values of `group` neighbours side by side: [N / group, A, group · Z]."""
    if group == 1:
        return value_NAZ
    samples, queries, draws = value_NAZ.shape
    return value_NAZ.view(-1, group, queries, draws).transpose(1, 2).reshape(samples // group, queries, group * draws)


def _apart(value_FAK: Tensor, group: int) -> Tensor:
    """The inverse of `_together`: [N, A, Z]."""
    if group == 1:
        return value_FAK
    forwards, queries = value_FAK.shape[:2]
    return value_FAK.view(forwards, queries, group, -1).transpose(1, 2).reshape(forwards * group, queries, -1)


# ---- observe ----


def masked_candidates(context: SamplingContext, canvas: SamplerState, candidates: Candidates) -> Tensor:
    """Which candidates are masked [N, C]."""
    masked_NC: Tensor = canvas.tokens.gather(1, candidates.column_NC) == context.denoiser.mask_id
    return masked_NC & candidates.candidate_NC


def observe(
    context: SamplingContext,
    canvas: SamplerState,
    candidates: Candidates,
    masked_NC: Tensor,
    proposal: StepProposal,
    plan: StepPlan,
) -> Observation:
    """What the rule sees. The running statistic in `canvas` takes the new confidences in."""
    column_NC = candidates.column_NC
    before_NC = canvas.running.gather(1, column_NC)
    now_NC = STATISTICS[context.unmasking.statistic](before_NC, proposal.confidence_NC)
    running_NC = torch.where(masked_NC, now_NC, before_NC)
    unmasked_NC = ~masked_NC  # what else was queried there depends on the other samples
    canvas.running = canvas.running.scatter(1, column_NC, running_NC)
    return Observation(
        masked_NC=masked_NC,
        token_NC=proposal.token_NC.masked_fill(unmasked_NC, 0),
        confidence_NC=proposal.confidence_NC.masked_fill(unmasked_NC, 0.0),
        running_NC=running_NC.masked_fill(~candidates.candidate_NC, float("inf")),
        position_NC=column_NC - context.layout.start,
        count=plan.count,
        remaining=plan.remaining,
        uniforms=step_key(canvas),
        state=canvas.rule_state,
    )


# ---- commit ----


def commit(
    context: SamplingContext,
    canvas: SamplerState,
    candidates: Candidates,
    masked_NC: Tensor,
    proposal: StepProposal,
    plan: StepPlan,
) -> None:
    """Fill the candidates with the proposals that the rule commits; mask what it masks again. Changes `canvas`."""
    rule, column_NC = context.unmasking, candidates.column_NC
    observation = observe(context, canvas, candidates, masked_NC, proposal, plan)
    masked_after_NC = candidates.candidate_NC & rule(observation)
    canvas.rule_state = rule.next_state(observation)
    revealed_NC = masked_NC & ~masked_after_NC
    before_NC = canvas.tokens.gather(1, column_NC)
    remasked_NC = before_NC.masked_fill(masked_after_NC, context.denoiser.mask_id)
    now_NC = torch.where(revealed_NC, proposal.token_NC, remasked_NC)
    canvas.tokens = canvas.tokens.scatter(1, column_NC, now_NC)
    canvas.logp = _update(canvas.logp, column_NC, revealed_NC, proposal.logp_NC)
    canvas.confidence = _update(canvas.confidence, column_NC, revealed_NC, proposal.confidence_NC)
    canvas.revealed_at = _update(canvas.revealed_at, column_NC, revealed_NC, canvas.step_N[:, None])


def _update(whole_NL: Tensor, column_NC: Tensor, where_NC: Tensor, value_NC: Tensor) -> Tensor:
    """`whole_NL` with new values at some of the columns."""
    return whole_NL.scatter(1, column_NC, torch.where(where_NC, value_NC, whole_NL.gather(1, column_NC)))
