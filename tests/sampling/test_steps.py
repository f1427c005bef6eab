"""How many steps a completion takes: what is reported is what the model was asked, also beyond a step a token."""

import pytest

from helpers.small import prompts_of, small_denoiser
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedules import SCHEDULES
from unmask.sampling.unmasking import RULES
from unmask.uniforms import Uniforms


@pytest.mark.parametrize("block_length", [4, 8])
@pytest.mark.parametrize("steps", [2, 8, 16, 128])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_steps_taken_are_the_steps_that_ask_the_model(schedule, steps, block_length):
    denoiser, asked = small_denoiser(), 0

    def count(*_, **__):
        nonlocal asked
        asked += 1

    denoiser.register_forward_pre_hook(count, with_kwargs=True)
    sampler = Sampler(max_new_tokens=8, block_length=block_length, steps=steps, schedule=SCHEDULES[schedule])
    sampler(denoiser, prompts_of([[1, 2, 3]]), Uniforms())
    assert sampler.steps_taken == asked <= steps
    if schedule == "uniform":
        assert sampler.steps_taken == min(steps, 8)


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if rule.adaptive], ids=lambda rule: rule.name)
def test_steps_taken_of_rules_that_take_what_they_need_are_those_given(rule):
    assert Sampler(max_new_tokens=8, block_length=8, steps=16, unmasking=rule()).steps_taken == 16
