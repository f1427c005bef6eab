"""Unmasking rules of a user's own, in one file outside the package, that keep state from step to step."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from helpers import stable_rule
from helpers.long import long_unless
from helpers.small import MASK, prompts_of, small_denoiser
from unmask.errors import UserError
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import Measure, Unmasking, probability
from unmask.uniforms import Uniforms
from unmask.validation import load_named

ROWS = [[1, 2, 3], [4, 5], [6, 7, 1, 2, 3], [2]]
DENOISER = small_denoiser(seed=5)
RULES = {name: load_named(f"{stable_rule.__file__}:{name}", "unmasking rule")() for name in ("Stable", "StableFirst")}


def sampler_of(rule, **changes):
    settings = {"max_new_tokens": 16, "block_length": 4, "steps": 16, "temperature": 1.0, "stop_at_end": True}
    return Sampler(unmasking=rule, **(settings | changes))


def test_user_rule_stands_outside_the_package():
    assert Path(stable_rule.__file__).parent == Path(__file__).parent.parent / "helpers"
    assert [type(rule).__name__ for rule in RULES.values()] == ["Stable", "StableFirst"]
    assert RULES["StableFirst"].bonus == 1.0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_stateful_rule_commits_proposals_that_repeat(rule, temperature):
    """Its commits, step by step, from the proposals that it was given: told by a rule that notes its observations."""
    seen = []

    class Noted(type(rule)):
        def __call__(self, observation):
            after_NC = super().__call__(observation)
            seen.append((observation, after_NC))
            return after_NC

    sampler = sampler_of(Noted(), temperature=temperature, max_new_tokens=8, block_length=8, stop_at_end=False)
    sampler(DENOISER, prompts_of(ROWS), Uniforms())
    before_NC = torch.full((len(ROWS), 8), -1)
    repeated = 0
    for observation, after_NC in seen:
        assert torch.equal(observation.state, before_NC)
        stable_NC = (observation.token_NC == before_NC) & observation.masked_NC
        committed_NC = observation.masked_NC & ~after_NC
        repeated += int((stable_NC & committed_NC).sum())
        if rule.adaptive:
            assert bool((committed_NC | ~stable_NC).all())
        before_NC = torch.where(observation.masked_NC, observation.token_NC, before_NC)
    assert repeated > 0


@pytest.mark.parametrize("batch", long_unless({3}, (0, 3, 5)))
@pytest.mark.parametrize("blocks_of_the_model", [None, 4])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rule_state_follows_its_sample(rule, blocks_of_the_model, batch):
    """Whoever leaves and joins: samples are done after different blocks, and others begin in their places."""
    denoiser = small_denoiser(seed=5)
    denoiser.block_length = blocks_of_the_model
    together = sampler_of(rule, batch=batch)(denoiser, prompts_of(ROWS, samples=range(3)), Uniforms(), group_size=3)
    for index, row in enumerate(ROWS):
        for sample in range(3):
            alone = sampler_of(rule)(denoiser, prompts_of([row], samples=[sample]), Uniforms())
            for name in ("tokens_NL", "revealed_at_NL"):
                mine, among = getattr(alone, name)[0, -16:], getattr(together, name)[3 * index + sample, -16:]
                kept = alone.completion_NL[0, -16:]
                assert torch.equal(mine[kept], among[kept])
    ended_in_N = torch.where(~together.completion_NL & (together.block_NL >= 0), together.block_NL, 99).amin(1)
    assert len(ended_in_N.unique()) > 1


@dataclass(frozen=True, kw_only=True)
class Reluctant(Unmasking):
    """Commits nothing."""

    name: ClassVar[str] = "reluctant"
    adaptive: ClassVar[bool] = True
    scheduled: ClassVar[bool] = False

    def __call__(self, observation):
        return observation.masked_NC


def test_adaptive_rule_that_leaves_masks_is_refused():
    with pytest.raises(UserError, match="unmasking reluctant left 4 positions of a block masked after 4 steps"):
        sampler_of(Reluctant())(DENOISER, prompts_of(ROWS), Uniforms())


@pytest.mark.parametrize("trait", ["candidates", "statistic"])
def test_sampler_refuses_unknown_traits(trait):
    rule = type("Odd", (Reluctant,), {trait: "all"})()
    with pytest.raises(UserError, match=f"{trait} of unmasking reluctant 'all' is unknown: give one of"):
        sampler_of(rule)


@dataclass(frozen=True, kw_only=True)
class Squared(stable_rule.StableFirst):
    """Confidence is the square of the proposal's probability; `slices`: said to need no other logits."""

    name: ClassVar[str] = "squared"
    slices: bool = True

    @property
    def measure(self):
        return Measure(function=lambda *inputs: probability(*inputs) ** 2, reads_all_logits=not self.slices)


def test_measure_of_proposals_alone_gives_the_same_as_with_all_logits():
    by_slices, whole = (
        sampler_of(Squared(slices=slices))(DENOISER, prompts_of(ROWS), Uniforms()) for slices in (True, False)
    )
    assert torch.equal(by_slices.tokens_NL, whole.tokens_NL)
    torch.testing.assert_close(by_slices.confidence_NL, whole.confidence_NL, atol=1e-5, rtol=1e-5)
    assert not bool((by_slices.tokens_NL == MASK).any())
