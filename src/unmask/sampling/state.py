"""What the denoising loop knows of its samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(kw_only=True)
class SamplerState:
    """Tensors that the denoising loop moves: [N, L], block_NC [N, C], one a sample [N]."""

    tokens: Tensor
    attention: Tensor
    block_NC: Tensor  # block of each completion position
    running: Tensor  # confidence so far, by the rule's statistic; -inf where never predicted
    confidence: Tensor
    logp: Tensor
    revealed_at: Tensor
    step_N: Tensor  # denoising steps taken
    prompt_N: Tensor  # with `sample_N`, the keys of the draws
    sample_N: Tensor

    def take(self, rows: Tensor) -> SamplerState:
        """Some of them."""
        return SamplerState(**{name: tensor[rows] for name, tensor in vars(self).items()})

    def put(self, rows: Tensor, part: SamplerState) -> None:
        """Some of them back in their places, the first of `part`."""
        for name, tensor in vars(self).items():
            tensor[rows] = getattr(part, name)[: len(rows)]


def pad_to_multiple(places: list[int], batch_multiple: int) -> list[int]:
    """So many that `batch_multiple` divides their number: the first is named again, to be worked on for nothing."""
    return places + places[:1] * (-len(places) % batch_multiple)
