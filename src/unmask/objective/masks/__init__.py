"""Masking: which questions a method asks about a rollout, and which advantage each carries.

Pure: tensors and keys in, batch out. Positions outside a masking's span (after the end of the sequence, where the span
ends there) are masked in every row, so that no row sees how long the completion is.
"""

from unmask.objective.masks.base import (
    EosTokens,
    FullyMasked,
    Span,
    all_completion,
    mask_prompt,
    through_eos,
    through_first_eos,
)
from unmask.objective.masks.blocks import BlockRandom
from unmask.objective.masks.pairs import BestAndWorst
from unmask.objective.masks.random import (
    CoupledCounts,
    FullAndPair,
    InverseTimes,
    MaskDistribution,
    QuadratureNodes,
    RandomMasks,
    RandomTimes,
    SpacedTime,
    StratifiedTimes,
    UniformCounts,
)
from unmask.objective.masks.recorded import (
    Branches,
    OwnGuesses,
    all_masked,
    committed,
    largest_advantages,
    masked_through_eos,
    random_steps,
    spread_steps,
)
from unmask.objective.masks.trajectory import EqualSegments, Prefixes, RecordedTimes, Segments, ShrunkSteps

__all__ = [
    "BestAndWorst",
    "BlockRandom",
    "Branches",
    "CoupledCounts",
    "EosTokens",
    "EqualSegments",
    "FullAndPair",
    "FullyMasked",
    "InverseTimes",
    "MaskDistribution",
    "OwnGuesses",
    "Prefixes",
    "QuadratureNodes",
    "RandomMasks",
    "RandomTimes",
    "RecordedTimes",
    "Segments",
    "ShrunkSteps",
    "SpacedTime",
    "Span",
    "StratifiedTimes",
    "UniformCounts",
    "all_completion",
    "all_masked",
    "committed",
    "largest_advantages",
    "mask_prompt",
    "masked_through_eos",
    "random_steps",
    "spread_steps",
    "through_eos",
    "through_first_eos",
]
