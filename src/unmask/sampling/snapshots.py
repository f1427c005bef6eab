"""Buffers of the states that a sampler passes, and which samples are recorded at which step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.sampling.records import Record
from unmask.sampling.state import pad_to_multiple
from unmask.types import Snapshot


class SnapshotBuffer:
    """A Snapshot that fills as the samples pass their recorded steps.

    `steps` of every sample are known on the host, so no device is waited for. `guesses`: which of the tokens that a
    step draws at a column are kept (0 is the sampler's own proposal).
    """

    def __init__(self, step_N: Tensor, record: Record, tokens_NL: Tensor) -> None:
        self.steps: list[int] = step_N.tolist()
        self._recorded_steps = set(self.steps)
        first = 0 if record.own else 1
        self.guesses = slice(first, first + record.guesses)
        empty = torch.zeros((record.guesses, *tokens_NL.shape), device=tokens_NL.device)
        self.snapshot = Snapshot(
            step_N=step_N.to(tokens_NL.device),
            canvas_NL=tokens_NL.clone(),
            guesses_ZNL=tokens_NL.repeat(record.guesses, 1, 1),
            logp_ZNL=empty,
            confidence_ZNL=empty.clone(),
        )

    def at(self, step: int, rows: Sequence[int]) -> list[int]:
        """Places among `rows` of the samples whose recorded step is `step`."""
        if step not in self._recorded_steps:
            return []
        return [place for place, row in enumerate(rows) if self.steps[row] == step]

    def remember(
        self, rows: Tensor, canvas_NL: Tensor, column_NA: Tensor, tokens_NAZ: Tensor, logp_NAZ: Tensor, mask_id: int
    ) -> None:
        """Store canvases of the samples `rows`, and guesses there: all masked columns are among `column_NA`."""
        masked_NA = canvas_NL.gather(1, column_NA) == mask_id
        before = self.snapshot
        guesses, logps = [], []
        for guess in range(*self.guesses.indices(tokens_NAZ.shape[2])):
            token_NA = torch.where(masked_NA, tokens_NAZ[..., guess], canvas_NL.gather(1, column_NA))
            guesses.append(canvas_NL.scatter(1, column_NA, token_NA))
            blank_NL = torch.zeros(canvas_NL.shape, device=canvas_NL.device)
            logps.append(blank_NL.scatter(1, column_NA, logp_NAZ[..., guess] * masked_NA))
        logp, masked = torch.stack(logps), canvas_NL == mask_id
        self.snapshot = replace(
            before,
            canvas_NL=before.canvas_NL.index_copy(0, rows, canvas_NL),
            guesses_ZNL=before.guesses_ZNL.index_copy(1, rows, torch.stack(guesses)),
            logp_ZNL=before.logp_ZNL.index_copy(1, rows, logp),
            confidence_ZNL=before.confidence_ZNL.index_copy(1, rows, logp.exp() * masked),
        )


@dataclass(frozen=True, kw_only=True)
class SnapshotRequest:
    """Samples to snapshot before one step: `place_N` indexes the samples that run, `row_N` all samples."""

    buffer: SnapshotBuffer
    place_N: Tensor
    row_N: Tensor


def snapshot_requests(
    buffers: Sequence[SnapshotBuffer],
    steps: Iterable[int],
    rows: Sequence[int],
    batch_multiple: int,
    device: torch.device,
) -> dict[int, list[SnapshotRequest]]:
    """The requests of each of a block's steps, made in one transfer to the device, for steps must not wait.

    `rows`: the samples that run. Numbers of samples are padded to multiples of `batch_multiple` by naming some twice.
    """
    found = [(step, buffer, places) for step in steps for buffer in buffers if (places := buffer.at(step, rows))]
    padded = [pad_to_multiple(places, batch_multiple) for _, _, places in found]
    index = [[place, rows[place]] for places in padded for place in places]
    place_N, row_N = torch.tensor(index, dtype=torch.long, device=device).view(-1, 2).unbind(1)
    sizes = [len(places) for places in padded]
    requests: dict[int, list[SnapshotRequest]] = {}
    for (step, buffer, _), place, row in zip(
        found, torch.split(place_N, sizes), torch.split(row_N, sizes), strict=True
    ):
        requests.setdefault(step, []).append(SnapshotRequest(buffer=buffer, place_N=place, row_N=row))
    return requests
