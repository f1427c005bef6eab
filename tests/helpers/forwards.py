"""Shapes of the forwards that a network makes."""

from contextlib import contextmanager


@contextmanager
def count_forwards(denoiser):
    """A list that grows by (samples, columns) of every forward of the denoiser's network while the context is open."""
    network, shapes = denoiser.model.base_model, []
    whole = network.forward

    def counted(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return whole(**inputs)

    network.forward = counted
    try:
        yield shapes
    finally:
        del network.forward
