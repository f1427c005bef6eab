"""Activations that are computed again in the backward pass instead of being kept (2016: arXiv 1604.06174)."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from unmask.denoisers.base import Denoiser


def recompute_layers(denoiser: Denoiser) -> None:
    """Keep the inputs of the layers alone, and compute the rest of them once more for the gradient.

    Not transformers' own switch: that one works in training mode only, where dropout would be on.
    """
    for layer in denoiser.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
