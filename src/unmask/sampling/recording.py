"""Recording within a step: what a method asked to remember (`records`) goes into its buffers (`snapshots`).

A state's guesses come either with the step's own forward, where that queries every masked column anyway, or from a
forward of their own for the few samples that are recorded at the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.denoisers.key_values import CacheWindow
from unmask.sampling.columns import first_flagged
from unmask.sampling.context import SamplingContext
from unmask.sampling.snapshots import SnapshotRequest
from unmask.sampling.state import SamplerState
from unmask.sampling.step import Proposals, StepProposal, propose


def further_guesses(context: SamplingContext) -> int:
    """Guesses to draw beside the sampler's own proposal, which is the one guess of an `own` record."""
    return 0 if context.record is None or context.record.own else context.record.guesses


def records_with_step(context: SamplingContext, suffix: int) -> bool:
    """Whether a step with requests queries every masked column: guesses are the sampler's own, or all that is
    masked is in the block (`suffix` positions are behind it), and no cache leaves columns out."""
    own = context.record is not None and context.record.own
    return own or (suffix == 0 and context.caching is None)


def propose_and_record(
    context: SamplingContext,
    canvas: SamplerState,
    requests: Sequence[SnapshotRequest],
    most: int,
    *,
    group: int,
    window: CacheWindow | None,
) -> StepProposal:
    """Proposals at every masked column, of which no sample has more than `most`, recorded for the requests: [N, L]."""
    column_NA = first_flagged(_masked_completion(context, canvas), most)
    guesses = further_guesses(context)
    proposals = propose(context, canvas, column_NA, group=group, guesses=guesses, window=window)
    for request in requests:
        at = request.place_N
        some = Proposals(*(each[at] for each in proposals))
        _remember(context, request, canvas.tokens[at], column_NA[at], some.token_NAZ, some.logp_NAZ)
    return proposals.scatter(column_NA, canvas.tokens.shape[1])


def record_apart(context: SamplingContext, canvas: SamplerState, request: SnapshotRequest, most: int) -> None:
    """Record the request's samples by a forward of their own about all that is masked there, `most` columns or less."""
    part = canvas.take(request.place_N)
    column_NA = first_flagged(_masked_completion(context, part), most)
    if most:
        proposals = propose(context, part, column_NA, guesses=further_guesses(context))
        token_NAZ, logp_NAZ = proposals.token_NAZ, proposals.logp_NAZ
    else:  # nothing is masked any more: all guesses are the canvas
        token_NAZ = column_NA[..., None].expand(-1, -1, request.buffer.guesses.stop)
        logp_NAZ = token_NAZ.float()
    _remember(context, request, part.tokens, column_NA, token_NAZ, logp_NAZ)


def _masked_completion(context: SamplingContext, canvas: SamplerState) -> Tensor:
    """Masked columns behind the prompt [N, L]."""
    column_L = torch.arange(context.layout.length, device=canvas.tokens.device)
    masked_NL: Tensor = (canvas.tokens == context.denoiser.mask_id) & (column_L >= context.layout.start)
    return masked_NL


def _remember(
    context: SamplingContext,
    request: SnapshotRequest,
    canvas_NL: Tensor,
    column_NA: Tensor,
    token_NAZ: Tensor,
    logp_NAZ: Tensor,
) -> None:
    request.buffer.remember(request.row_N, canvas_NL, column_NA, token_NAZ, logp_NAZ, context.denoiser.mask_id)
