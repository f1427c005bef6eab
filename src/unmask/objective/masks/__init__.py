"""Maskings: from rollouts and advantages to scoring batches, the masked inputs and the tokens scored on them.

Pure: tensors and keys in, a batch out. Positions outside a masking's span (after the end of the sequence, where the
span ends there) are masked in every row, so that no row sees how long the completion is.
"""

from unmask.objective.masks.base import (
    EosTokens,
    FullyMasked,
    Masking,
    PromptMask,
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
    POSITIONS,
    STEP_CHOICES,
    Branches,
    OwnGuesses,
    all_masked,
    committed,
    largest_advantages,
    masked_through_eos,
    random_steps,
    spread_steps,
)
from unmask.objective.masks.trajectory import EqualSegments, Grouping, Prefixes, RecordedTimes, Segments, ShrunkSteps

__all__ = [
    "POSITIONS",
    "STEP_CHOICES",
    "BestAndWorst",
    "BlockRandom",
    "Branches",
    "CoupledCounts",
    "EosTokens",
    "EqualSegments",
    "FullAndPair",
    "FullyMasked",
    "Grouping",
    "InverseTimes",
    "MaskDistribution",
    "Masking",
    "OwnGuesses",
    "Prefixes",
    "PromptMask",
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
