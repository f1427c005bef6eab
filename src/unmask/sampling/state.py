"""Tensors that the denoising loop carries for its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unmask.denoisers.base import Attention


@dataclass(kw_only=True)
class SamplerState:
    """What the loop knows of some samples, a row each: tensors [N, L] unless said otherwise."""

    tokens: Tensor
    mask: Attention  # which columns are no pads, as `mask_of` makes it
    block_NC: Tensor  # block of each completion position [N, C]
    running: Tensor  # confidence so far, by the rule's statistic; -inf where never predicted
    confidence: Tensor
    logp: Tensor
    revealed_at: Tensor
    step_N: Tensor  # denoising steps taken [N]
    key_N: Tensor  # random key of each sample [N]: folded from the call's key, prompt and sample
    rule_state: Tensor | None  # the unmasking rule's own [N, ...]

    def take(self, rows: Tensor) -> SamplerState:
        """Copies of some rows, in the order of `rows` (indices; a row may be named twice)."""
        taken: dict[str, Any] = {name: None if tensor is None else tensor[rows] for name, tensor in vars(self).items()}
        return SamplerState(**taken)

    def put(self, rows: Tensor, part: SamplerState) -> None:
        """Write the first rows of `part` in place of `rows`."""
        for name, tensor in vars(self).items():
            if tensor is not None:
                tensor[rows] = getattr(part, name)[: len(rows)]


def pad_to_multiple(places: list[int], batch_multiple: int) -> list[int]:
    """The indices, the first repeated at the end until `batch_multiple` divides their number; [] stays [].

    Results of repeats are discarded: so forwards, and kernels compiled for them, see few batch sizes.
    """
    return places + places[:1] * (-len(places) % batch_multiple)
