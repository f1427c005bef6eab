"""States that the sampler passes, remembered for the methods that ask."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmask.records import Record
from unmask.types import Snapshot


class Slot:
    """A snapshot that fills as the samples pass their steps (known on the host: no device is waited for)."""

    def __init__(self, step_N: Tensor, record: Record, tokens_NL: Tensor) -> None:
        self.step_N = step_N.cpu()
        self.wanted = set(self.step_N.tolist())
        first = 0 if record.own else 1  # answer 0 is the sampler's own proposal
        self.guesses = slice(first, first + record.guesses)
        empty = torch.zeros((record.guesses, *tokens_NL.shape), device=tokens_NL.device)
        self.snapshot = Snapshot(
            step_N=step_N.to(tokens_NL.device),
            canvas_NL=tokens_NL.clone(),
            guesses_ZNL=tokens_NL.repeat(record.guesses, 1, 1),
            logp_ZNL=empty,
            confidence_ZNL=empty.clone(),
        )

    def wants(self, step: int) -> bool:
        return step in self.wanted

    def remember(
        self, step: int, canvas_NL: Tensor, start: int, tokens_NCZ: Tensor, logp_NCZ: Tensor, mask_id: int
    ) -> None:
        """Store the canvas of the samples that are at their step, and its masked positions as filled by the guesses."""
        rows = torch.nonzero(self.step_N == step)[:, 0].to(canvas_NL.device)
        canvas, masked = canvas_NL[rows], canvas_NL[rows] == mask_id
        pad = (start, 0)
        guesses = torch.nn.functional.pad(tokens_NCZ[..., self.guesses][rows].permute(2, 0, 1), pad)
        logp = torch.nn.functional.pad(logp_NCZ[..., self.guesses][rows].permute(2, 0, 1), pad) * masked
        self.snapshot = replace(
            self.snapshot,
            canvas_NL=self.snapshot.canvas_NL.index_copy(0, rows, canvas),
            guesses_ZNL=self.snapshot.guesses_ZNL.index_copy(1, rows, torch.where(masked, guesses, canvas)),
            logp_ZNL=self.snapshot.logp_ZNL.index_copy(1, rows, logp),
            confidence_ZNL=self.snapshot.confidence_ZNL.index_copy(1, rows, logp.exp() * masked),
        )
