"""Sampling mismatch: how far log-probs recorded while sampling (with a cache) are from those of scoring."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmask.denoisers.base import Denoiser
from unmask.distributed import World
from unmask.objective.likelihood import row_logp
from unmask.objective.masks.base import single_rows
from unmask.types import Rollout
from unmask.uniforms import Uniforms


@torch.no_grad()
def step_logps(
    denoiser: Denoiser, rollout: Rollout, step_N: Tensor, rows: slice = slice(None)
) -> tuple[Tensor, Tensor, Tensor]:
    """(sampled, scored, revealed), [N, L] each: log-probs of what each sample revealed in step `step_N`, 0 elsewhere.

    As recorded by the sampler, as scored by `denoiser` now, and where. `rows`: of those samples alone. One
    forward a sample, of all its columns, at the temperature of sampling. Refused after a sampler that remasks.
    """
    trajectory_NL = rollout.trajectory_NL[rows]
    revealed_NL = (trajectory_NL == step_N[:, None]) & rollout.completion_NL[rows]
    samples = len(rollout.tokens_NL)
    batch = single_rows(
        rollout,
        torch.arange(samples, device=step_N.device)[rows],
        masked_RL=trajectory_NL >= step_N[:, None],
        scored_RL=revealed_NL,
        token_weight_RL=revealed_NL.float(),
        advantage=torch.zeros(samples // rollout.group_size, rollout.group_size, device=step_N.device),
    )
    scored_NL = row_logp(denoiser, replace(batch, temperature=rollout.temperature or 1.0))
    return rollout.sampled_logp_NL[rows] * revealed_NL, scored_NL, revealed_NL


def sampling_mismatch(denoiser: Denoiser, rollout: Rollout, uniforms: Uniforms, world: World) -> dict[str, float]:
    """sampling/logp_gap: mean |sampled - scored| log-prob of a token; sampling/kl: mean sampled - scored; in nats.

    Over all ranks, at one step drawn for each group, of its first sample: one forward a group.
    """
    sums = torch.zeros(3, device=rollout.tokens_NL.device)
    if len(rollout.tokens_NL):
        sums = _mismatch_sums(denoiser, rollout, uniforms)
    absolute, signed, tokens = world.sum(sums).tolist()
    return {"sampling/logp_gap": absolute / max(1, tokens), "sampling/kl": signed / max(1, tokens)}


def _mismatch_sums(denoiser: Denoiser, rollout: Rollout, uniforms: Uniforms) -> Tensor:
    rows = slice(None, None, rollout.group_size)
    last_N = (rollout.trajectory_NL * rollout.completion_NL)[rows].amax(1)  # the last step of any that count
    draw_N = uniforms.key("gap", rollout.prompt_N[rows]).draw()
    sampled_NL, scored_NL, where_NL = step_logps(denoiser, rollout, (draw_N * (last_N + 1)).long(), rows)
    mismatch_NL = sampled_NL - scored_NL
    return torch.stack([mismatch_NL.abs().sum(), mismatch_NL.sum(), where_NL.sum().to(mismatch_NL.dtype)])
