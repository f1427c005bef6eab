"""For several tests: a small denoiser with lively logits, prompts for it, and a chi-square test."""

import torch
from hypothesis import settings

from unmask.denoisers.tiny import tiny_denoiser
from unmask.types import Prompts

VOCABULARY, MASK, EOS = 10, 9, 8

few = settings(max_examples=5, deadline=None, derandomize=True, database=None)


def small_denoiser(seed=0, max_length=40):
    """Random weights, large enough that predictions differ between canvases; some sequences end early."""
    denoiser = tiny_denoiser(
        vocabulary=VOCABULARY,
        mask_id=MASK,
        eos_id=EOS,
        hidden=16,
        layers=2,
        heads=2,
        max_length=max_length,
        seed=seed,
    )
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    return denoiser.eval()


def prompts_of(rows, samples=(0,), width=None) -> Prompts:
    """Every row once for each sample id, left-padded to `width`; a row's prompt id is its sum of tokens."""
    width = width or max(map(len, rows))
    padded = [[EOS] * (width - len(row)) + row for row in rows for _ in samples]
    attention = [[False] * (width - len(row)) + [True] * len(row) for row in rows for _ in samples]
    return Prompts(
        tokens_NP=torch.tensor(padded),
        attention_NP=torch.tensor(attention),
        prompt_N=torch.tensor([sum(row) for row in rows for _ in samples]),
        sample_N=torch.tensor([sample for _ in rows for sample in samples]),
    )


def surprise(counts, probabilities) -> float:
    """The chi-square statistic of counts against a distribution, as a standard normal (Wilson and Hilferty 1931)."""
    expected = torch.as_tensor(probabilities).double() * counts.sum()
    assert bool((counts[expected == 0] == 0).all())
    counts, expected = counts[expected > 0].double(), expected[expected > 0]
    freedom = len(expected) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
