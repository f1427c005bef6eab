"""Unmasking rules: which masked positions a denoising step reveals. Torch-free to import.

    from unmask import rules

    sampler = unmask.Sampler(max_new_tokens=64, steps=32, unmasking=rules.TopKMargin())

A rule of your own subclasses `Unmasking` in a frozen dataclass.
"""

from unmask.sampling.unmasking import (
    Entropy,
    Factor,
    LeftToRight,
    LowConfidence,
    Observation,
    Random,
    RunningConfidence,
    ScheduledThreshold,
    Threshold,
    TopKMargin,
    Unmasking,
)

__all__ = [
    "Entropy",
    "Factor",
    "LeftToRight",
    "LowConfidence",
    "Observation",
    "Random",
    "RunningConfidence",
    "ScheduledThreshold",
    "Threshold",
    "TopKMargin",
    "Unmasking",
]
