"""Activations that are computed again in the backward pass instead of being kept (2016: arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from unmask.denoisers.base import Denoiser


def recompute_layers(denoiser: Denoiser) -> None:
    """Keep the inputs of the layers alone, and compute the rest of them once more for the gradient.

    Not transformers' own switch: that one works in training mode only, where dropout would be on.
    """
    for layer in denoiser.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Tensor], hidden_states: Tensor, **options: Any) -> Tensor:
    # A frame of ours, for a compiler enters none of PyTorch's; and options that nobody reads are not looked at in it.
    output: Tensor = checkpoint(
        lambda hidden_states: forward(hidden_states, **options),
        hidden_states,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return output
