"""Advantage, on groups worked out by hand."""

import pytest
import torch

from helpers.by_hand import close, exact
from unmask.objective import advantages

STEPS = torch.tensor([[[0.0, 1.0, 0.5, 0.25]]])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (advantages.step_outcome, [0.25, 0.25, 0.25, 0.25]),
        (advantages.step_reward, [0.0, 1.0, 0.5, 0.25]),
        (advantages.step_difference, [0.0, 1.0, -0.5, -0.25]),
        (advantages.future_mean, [1.75 / 4, 1.75 / 3, 0.375, 0.25]),
        (advantages.difference_and_future, [1.75 / 3, 1.375, -0.25, 0.0]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_step_scores_by_hand(score, expected):
    two = torch.cat([STEPS, STEPS + 1], dim=1)
    close(score(two)[0, 0], expected)
    assert score(two).shape == two.shape
    close(score(STEPS + 1)[0, 0, 0], score(two)[0, 1, 0])


def test_step_difference_of_the_first_step_is_its_reward():
    close(advantages.step_difference(STEPS + 1)[0, 0], [1.0, 1.0, -0.5, -0.25])
    close(advantages.difference_and_future(STEPS[..., :1] + 3)[0, 0], [6.0])


def test_centered_by_group_and_by_branch():
    rewards = torch.tensor([[[1.0, 3.0], [2.0, 8.0], [6.0, 1.0]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    close(advantages.centered(rewards)[0], [[-2.0, -1.0], [-1.0, 4.0], [3.0, -3.0]])
    close(advantages.centered_per_state(rewards)[0], [[-1.0, 1.0], [-3.0, 3.0], [2.5, -2.5]])
    close(advantages.z_score(rewards)[0, :, 0], [-2 / (7**0.5 + 1e-4), -1 / (7**0.5 + 1e-4), 3 / (7**0.5 + 1e-4)])
    tiny = 1e-4 / (2**0.5 * 1e-4 + 1e-4)
    close(advantages.z_score(torch.tensor([[0.0, 2e-4]])), [[-tiny, tiny]])
    close(advantages.z_score(rewards)[1], torch.zeros(3, 2))
    close(advantages.z_score(rewards[:, :1]), torch.zeros(2, 1, 2))


def test_leave_one_out_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    exact(advantages.leave_one_out(rewards), [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]])
    exact(advantages.leave_one_out(rewards[:, :2])[0], [-1, 1])


def test_softmax_pair_and_positive_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    up = torch.tensor([-2.0, -1.0, 3.0], dtype=torch.float64).exp()
    down = 1 / up
    exact(advantages.softmax_pair(rewards), [(3 * (up / up.sum() - down / down.sum())).tolist(), [0, 0, 0]])
    exact(advantages.softmax_positive(rewards), [(3 * up / up.sum()).tolist(), [1, 1, 1]])


def test_bounded_z_score_is_clipped():
    rewards = torch.tensor([[0.0, 0.0, 0.0, 4.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    z = advantages.z_score(rewards)
    assert (float(z.max()), float(z.min())) > (1.4, -1.2)
    assert float(z[1, 0]) < -1.1
    exact(advantages.bounded_z_score(rewards), [[-2 / (4 + 2e-4)] * 3 + [1], [-1, *z[1, 1:3].tolist(), 1]])


def test_as_given_is_the_rewards():
    assert torch.equal(advantages.as_given(STEPS[0]), STEPS[0])


def test_population_z_score_by_hand():
    rewards = torch.tensor([[1.0, 3.0], [0.25, 0.25], [0.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    scores = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    exact(advantages.PopulationZScore()(rewards), scores)
    exact(advantages.PopulationZScore()(torch.tensor([[1.0, 2.0, 6.0]]))[0] * (14 / 3) ** 0.5, [-2, -1, 3])
    for lowest, highest, kept in (
        (0.25, 2.0, [1, 1, 1, 1]),  # both bounds belong to the range
        (0.26, 2.0, [1, 0, 0, 1]),
        (0.25, 1.99, [0, 1, 1, 1]),
        (0.75, 0.75, [0, 0, 0, 1]),
    ):
        bounded = advantages.PopulationZScore(lowest=lowest, highest=highest)
        exact(bounded(rewards), scores * torch.tensor(kept)[:, None])
