"""torch.compile of decoder layers: all but the last, whose query columns are fewer at every step."""

from __future__ import annotations

from unmask.denoisers.base import Denoiser


def compile_layers(denoiser: Denoiser, backend: str = "inductor") -> None:
    """Compile each decoder layer but the last in place; layers of one kind share their graphs.

    Shapes stay the same within a block; from block to block, numbers of samples and prompt widths take few values.
    """
    for layer in denoiser.model.base_model.layers[:-1]:
        layer.compile(backend=backend)
