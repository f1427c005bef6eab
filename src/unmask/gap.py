"""How far the log-probs of sampling are from those of scoring: what a cache costs in truth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask import distributed
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head import TargetLogProb
from unmask.types import Rollout
from unmask.uniforms import Uniforms


@torch.no_grad()
def step_logps(
    denoiser: Denoiser, rollout: Rollout, step_N: Tensor, rows: slice = slice(None)
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of what the samples `rows` revealed in their step: as sampled, as scored now, and where: [N, L] each.

    One forward a sample, of all its columns, at the temperature of sampling. Refused after a sampler that remasks.
    """
    tokens_NL, trajectory_NL = rollout.tokens_NL[rows], rollout.trajectory_NL[rows]
    canvas_NL = torch.where(trajectory_NL >= step_N[:, None], rollout.mask_id, tokens_NL)
    revealed_NL = (trajectory_NL == step_N[:, None]) & rollout.completion_NL[rows]
    column_NA = torch.arange(rollout.prompt_length, canvas_NL.shape[1], device=canvas_NL.device)
    column_NA = column_NA.expand(len(canvas_NL), -1)
    answer = TargetLogProb(tokens_NL.gather(1, column_NA).reshape(-1, 1), rollout.temperature or 1.0)
    (logp_NA1,) = denoiser(canvas_NL, rollout.attention_NL[rows], column_NA, answer)
    sampled_NL = rollout.sampled_logp_NL[rows]
    scored_NL = torch.zeros_like(sampled_NL).scatter(1, column_NA, logp_NA1[..., 0].float())
    return sampled_NL * revealed_NL, scored_NL * revealed_NL, revealed_NL


def sampling_gap(denoiser: Denoiser, rollout: Rollout, uniforms: Uniforms, accelerator: Any) -> dict[str, float]:
    """Mean |sampled - scored| log-prob of a token, and mean sampled - scored, at one step drawn for each group.

    One forward a group: of its first sample.
    """
    rows = slice(None, None, rollout.group_size)
    last_N = (rollout.trajectory_NL * rollout.completion_NL)[rows].amax(1)  # the last step of any that count
    draw_N = uniforms.key("gap", rollout.prompt_N[rows]).draw()
    sampled_NL, scored_NL, where_NL = step_logps(denoiser, rollout, (draw_N * (last_N + 1)).long(), rows)
    gap_NL = sampled_NL - scored_NL
    sums = torch.stack([gap_NL.abs().sum(), gap_NL.sum(), where_NL.sum().to(gap_NL.dtype)])
    absolute, signed, tokens = distributed.total(accelerator, sums).tolist()
    return {"sampling/logp_gap": absolute / max(1, tokens), "sampling/kl": signed / max(1, tokens)}
