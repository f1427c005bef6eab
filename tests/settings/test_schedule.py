"""The learning rate: warm-up and decay, whatever their lengths."""

import pytest

from unmask.settings.recipe import TrainSettings


def rates(**settings) -> list[float]:
    train = TrainSettings(learning_rate=1.0, **settings)
    return [train.learning_rate_at(step) for step in range(train.max_steps)]


def test_learning_rate_at_warms_up_then_decays_to_the_final_fraction():
    assert rates(max_steps=4, warmup_steps=2, final_fraction=0.5) == pytest.approx([0.5, 1.0, 0.75, 0.5])


@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 4, 5, 20])
@pytest.mark.parametrize("final_fraction", [0.0, 0.1, 0.9])
def test_learning_rate_at_ends_at_the_final_fraction_however_long_the_warm_up(warmup_steps, final_fraction):
    found = rates(max_steps=4, warmup_steps=warmup_steps, final_fraction=final_fraction)
    assert found[-1] == pytest.approx(final_fraction)
    assert all(rate > 0 for rate in found[:-1])


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_learning_rate_at_of_one_step_is_not_zero(warmup_steps):
    assert rates(max_steps=1, warmup_steps=warmup_steps, final_fraction=0.0) == [1.0]


def test_learning_rate_at_without_decay_keeps_a_warm_up_that_is_longer_than_the_run():
    assert rates(max_steps=2, warmup_steps=4) == [0.25, 0.5]
