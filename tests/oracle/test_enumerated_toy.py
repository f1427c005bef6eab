"""Where everything can be enumerated, the pieces have the expectations that theory says, to 1e-9."""

from functools import cache
from itertools import product

import pytest
import torch

from helpers.small import surprise
from unmask.objective.advantages import centered, centered_per_state, difference_and_future, z_score
from unmask.objective.likelihood import per_token, row_logp
from unmask.objective.losses import ClippedSurrogate
from unmask.objective.masks import Branches
from unmask.oracle.toy import (
    COMPLETIONS,
    LENGTH,
    MASK,
    PROMPT,
    SAMPLERS,
    SYMBOLS,
    Toy,
    prompts,
    reward,
    with_prompt,
)
from unmask.sampling.sampler import Sampler
from unmask.types import Rollout, ScoringBatch, Snapshot
from unmask.uniforms import Uniforms

UNCLIPPED = ClippedSurrogate(epsilon=1e9)
ONE = torch.tensor(1.0)
ENUMERATED = tuple(SAMPLERS)


@cache
def enumerated(name):
    toy = Toy()
    return toy, list(SAMPLERS[name][1](toy))


def rollout_of(completions, revealed_at, snapshots=()) -> Rollout:
    """Enumerated completions as one group."""
    tokens = with_prompt(completions)
    region = (torch.arange(PROMPT + LENGTH) >= PROMPT).expand_as(tokens)
    return Rollout(
        tokens_NL=tokens,
        attention_NL=torch.ones_like(tokens).bool(),
        completion_NL=region,
        block_NL=region.long() - 1,
        revealed_at_NL=torch.nn.functional.pad(torch.tensor(revealed_at), (PROMPT, 0), value=-1),
        sampled_logp_NL=torch.zeros(tokens.shape),
        confidence_NL=torch.zeros(tokens.shape),
        prompt_N=torch.zeros(len(tokens), dtype=torch.long),
        sample_N=torch.arange(len(tokens)),
        prompt_length=PROMPT,
        group_size=len(tokens),
        steps=LENGTH,
        temperature=1.0,
        mask_id=MASK,
        remasking=False,
        snapshots=tuple(snapshots),
    )


def close(ours, exact):
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-9)


# ---- trajectories ----


@pytest.mark.parametrize("name", ENUMERATED)
def test_trajectories_probabilities_sum_to_one(name):
    _, trajectories = enumerated(name)
    close(torch.stack([trajectory.logp for trajectory in trajectories]).exp().sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize("name", ENUMERATED)
def test_sampler_draws_the_enumerated_distribution(name):
    toy, trajectories = enumerated(name)
    probability = dict.fromkeys(product(COMPLETIONS, product(range(LENGTH), repeat=LENGTH)), 0.0)
    for trajectory in trajectories:
        probability[trajectory.completion, trajectory.revealed_at] += trajectory.logp.exp().item()
    sampler = Sampler(
        max_new_tokens=LENGTH, block_length=LENGTH, steps=LENGTH, temperature=1.0, unmasking=SAMPLERS[name][0]
    )
    rollout = sampler(toy, prompts(10_000), Uniforms())
    happened = torch.cat([rollout.tokens_NL[:, PROMPT:], rollout.revealed_at_NL[:, PROMPT:]], dim=1).tolist()
    counts = dict.fromkeys(probability, 0)
    for row in happened:
        counts[tuple(row[:LENGTH]), tuple(row[LENGTH:])] += 1
    assert all(counts[key] == 0 for key, value in probability.items() if value == 0)
    common = [key for key, value in probability.items() if value * len(happened) >= 5]
    observed, law = [torch.tensor([table[key] for key in common]).double() for table in (counts, probability)]
    rest = torch.tensor([len(happened) - float(observed.sum())])
    assert surprise(torch.cat([observed, rest]), torch.cat([law, 1 - law.sum()[None]])) < 4


def trajectory_views(trajectories) -> ScoringBatch:
    """One row a (trajectory, step): what was proposed there, weighted by the trajectory's probability."""
    steps = [(trajectory, step) for trajectory in trajectories for step in range(LENGTH)]
    inputs = with_prompt([trajectory.canvases[step] for trajectory, step in steps])
    targets, weight = torch.zeros_like(inputs), torch.zeros(inputs.shape, dtype=torch.float64)
    for row, (trajectory, step) in enumerate(steps):
        for position, token in trajectory.proposals[step].items():
            targets[row, PROMPT + position] = token
            weight[row, PROMPT + position] = trajectory.logp.exp().item()
    return ScoringBatch(
        inputs_FL=inputs,
        attention_FL=torch.ones_like(inputs).bool(),
        forward_R=torch.arange(len(steps)),
        targets_RL=targets,
        scored_RL=weight > 0,
        token_weight_RL=weight,
        unit_R=torch.arange(len(steps)),
        length_U=torch.ones(len(steps)).long(),
        advantage_U=torch.tensor([reward(trajectory.completion) for trajectory, _ in steps], dtype=torch.float64),
    )


@pytest.mark.parametrize("name", ENUMERATED)
def test_trajectories_policy_gradient_is_that_of_expected_reward(name):
    toy, trajectories = enumerated(name)
    expected_reward = sum(trajectory.logp.exp() * reward(trajectory.completion) for trajectory in trajectories)
    (exact,) = torch.autograd.grad(expected_reward, toy.table, retain_graph=True)
    batch = trajectory_views(trajectories)
    now = row_logp(toy, batch)
    loss = UNCLIPPED(now, now.detach(), batch.advantage_U, batch.token_weight_RL, ONE)
    (ours,) = torch.autograd.grad(-loss, toy.table)
    assert exact.abs().max() > 1e-3
    close(ours, exact)


def test_rollout_revealed_at_gives_the_canvases_of_every_trajectory():
    _, trajectories = enumerated("random")
    rollout = rollout_of([t.completion for t in trajectories], [t.revealed_at for t in trajectories])
    for step in range(LENGTH):
        assert torch.equal(rollout.canvas(step), with_prompt([t.canvases[step] for t in trajectories]))


# ---- DiSPO: E over fills of -grad L_step = ((Z - 1) / Z) grad J_step ----

STATES = {(MASK, 1, MASK): 0.7, (2, MASK, MASK): 0.3}  # states of the old policy and their probabilities


def fills_of(canvas):
    """Every way to fill the masked positions."""
    choices = [range(SYMBOLS) if symbol == MASK else (symbol,) for symbol in canvas]
    return list(product(*choices))


def fill_probability(toy, canvas, fill):
    logps = [toy.logp(canvas, i, fill[i]) for i in range(LENGTH) if canvas[i] == MASK]
    return sum(logps).exp()


def step_gradient(now, old, guesses, credit_of, sequence):
    """E of -grad L_step over all Z-tuples of fills drawn by `old`, and the gradient of J_step."""
    gradient, expected_reward = torch.zeros_like(now.table), 0.0
    for canvas, state_probability in STATES.items():
        fills = fills_of(canvas)
        rewards = torch.tensor([reward(fill) for fill in fills], dtype=torch.float64)
        expected_reward += state_probability * sum(
            fill_probability(now, canvas, fill) * r for fill, r in zip(fills, rewards, strict=True)
        )
        law = torch.stack([fill_probability(old, canvas, fill) for fill in fills]).detach()
        tuple_NZ = torch.cartesian_prod(*[torch.arange(len(fills))] * guesses)
        fills_ZNL = with_prompt(fills)[tuple_NZ].transpose(0, 1)
        zeros = torch.zeros(fills_ZNL.shape)
        snapshot = Snapshot(
            step_N=torch.ones(len(tuple_NZ), dtype=torch.long),
            canvas_NL=with_prompt([canvas] * len(tuple_NZ)),
            guesses_ZNL=fills_ZNL,
            logp_ZNL=zeros,
            confidence_ZNL=zeros,
        )
        rollout = rollout_of([fills[0]] * len(tuple_NZ), [(0,) * LENGTH] * len(tuple_NZ), [snapshot])
        batch = Branches(eos_id=-1)(rollout, credit_of(rewards[tuple_NZ][None]), Uniforms(), 0, 1)
        probability_U1 = (state_probability * law[tuple_NZ].prod(1) / guesses).repeat_interleave(guesses)[:, None]
        now_scores, old_scores = (per_token(row_logp(model, batch), batch) for model in (now, old))
        values = [now_scores.value_UK, old_scores.value_UK.detach()]
        weight = now_scores.loss_weight_UK * probability_U1
        if sequence:
            values, weight = [value.sum(1, keepdim=True) for value in values], probability_U1
        loss = UNCLIPPED(*values, batch.advantage_U, weight, ONE)
        gradient -= torch.autograd.grad(loss, now.table)[0]
    return gradient, torch.autograd.grad(expected_reward, now.table)[0]


def leave_one_out(rewards):
    """R_z minus the mean of the other branches."""
    guesses = rewards.shape[2]
    return centered_per_state(rewards) * guesses / (guesses - 1)


@pytest.mark.parametrize("guesses", [2, 3, 4])
@pytest.mark.parametrize("sequence", [True, False], ids=["sequence", "token"])
def test_dispo_factor_on_policy(guesses, sequence):
    toy = Toy()
    ours, exact = step_gradient(toy, toy, guesses, centered_per_state, sequence)
    assert exact.abs().max() > 1e-3
    close(ours, (guesses - 1) / guesses * exact)


@pytest.mark.parametrize("guesses", [2, 3])
def test_dispo_factor_off_policy_holds_for_the_sequence_ratio_alone(guesses):
    now, old = Toy(seed=1), Toy(seed=2)
    ours, exact = step_gradient(now, old, guesses, centered_per_state, sequence=True)
    close(ours, (guesses - 1) / guesses * exact)
    by_token, _ = step_gradient(now, old, guesses, centered_per_state, sequence=False)
    assert (by_token - (guesses - 1) / guesses * exact).abs().max() > 1e-3


@pytest.mark.parametrize("guesses", [2, 3])
def test_dispo_leave_one_out_removes_the_factor(guesses):
    toy = Toy()
    ours, exact = step_gradient(toy, toy, guesses, leave_one_out, sequence=True)
    close(ours, exact)


# ---- advantage by hand ----


def test_mdpo_advantages_by_hand():
    rewards = torch.tensor([[[0.0, 1.0, 0.5], [1.0, 0.0, 1.0]]], dtype=torch.float64)
    scores = difference_and_future(rewards)
    close(scores, torch.tensor([[[0.75, 1.5, 0.0], [1.5, 0.0, 2.0]]]).double())
    difference = torch.tensor([-0.75, 1.5, -2.0]).double()  # of the two samples, step by step
    first = difference / 2 / (difference.abs() / 2**0.5 + 1e-4)  # unbiased std of two numbers: |a - b| / sqrt 2
    close(z_score(scores), torch.stack([first, -first])[None])


def test_advantages_centered_and_z_score_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    close(centered(rewards), torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]).double())
    close(z_score(rewards)[0], torch.tensor([-2.0, -1.0, 3.0]).double() / (7**0.5 + 1e-4))
    close(z_score(rewards)[1], torch.zeros(3).double())
    close(z_score(torch.tensor([[3.0]]).double()), torch.zeros(1, 1).double())
