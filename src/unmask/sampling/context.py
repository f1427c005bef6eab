"""What every step of one Sampler call reads and none changes."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.denoisers.base import Denoiser
from unmask.sampling.caching import Caching
from unmask.sampling.columns import CanvasLayout
from unmask.sampling.records import Record
from unmask.sampling.snapshots import SnapshotBuffer
from unmask.sampling.unmasking import Unmasking


@dataclass(frozen=True, kw_only=True)
class SamplingContext:
    """Immutable context of one Sampler call: model, settings, schedule, recording request; shared by all blocks."""

    denoiser: Denoiser
    layout: CanvasLayout
    counts: tuple[int, ...]  # positions that each step of a block commits
    temperature: float
    unmasking: Unmasking
    guidance_scale: float
    stop_at_end: bool
    caching: Caching | None
    record: Record | None
    buffers: tuple[SnapshotBuffer, ...]
    batch_multiple: int  # numbers of samples in a forward are its multiples

    @property
    def exact_prefix_cache(self) -> bool:
        """Whether K/V of finished blocks are exact and may be reused: a block-causal model, no shift, no guidance."""
        return self.layout.block_causal and not self.layout.shift and not self.guidance_scale
