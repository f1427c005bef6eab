"""Layers as compiled kernels: all but the last, whose asked columns are fewer at every step."""

from __future__ import annotations

from unmask.denoisers.base import Denoiser


def compile_layers(denoiser: Denoiser, backend: str = "inductor") -> None:
    """Have torch.compile make kernels of the layers, alike layers sharing them.

    Within a block their shapes stay; from block to block, numbers of samples and widths of prompts take few values.
    """
    for layer in denoiser.model.base_model.layers[:-1]:
        layer.compile(backend=backend)
