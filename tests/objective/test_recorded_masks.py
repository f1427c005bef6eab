"""Rows at recorded states, on cases worked out by hand."""

from dataclasses import replace

import torch

from helpers.by_hand import PROMPT, close, hand_rollout
from helpers.small import EOS, MASK
from unmask.methods import MDPO, DiffuGRPO, DiSPO
from unmask.objective.masks import (
    Branches,
    FullyMasked,
    OwnGuesses,
    all_masked,
    committed,
    largest_advantages,
    mask_prompt,
    masked_through_eos,
    random_steps,
    spread_steps,
)
from unmask.sampling.unmasking import Factor, RunningConfidence, Threshold
from unmask.types import Snapshot
from unmask.uniforms import Uniforms

M, E = MASK, EOS
GUESSES = [  # of every step: the proposal where masked
    [[4, 5, 6, 1], [1, 2, 7, E], [E, 1, 3, 3], [2, E, 1, E]],
    [[4, 5, E, 1], [E, 7, 7, 3], [E, 1, E, 4], [5, 6, 3, E]],
    [[4, 5, E, 6], [7, 7, 7, 7], [E, 1, E, 2], [1, 2, 3, E]],
]


def hand_snapshot(rollout, step) -> Snapshot:
    canvas = rollout.canvas(step)
    guess = torch.cat([rollout.tokens_NL[:, :PROMPT], torch.tensor(GUESSES[step])], dim=1)
    probability = (torch.arange(28).view(4, 7) + 1.0 + step) / 40 * (canvas == M)
    return Snapshot(
        step_N=torch.full((4,), step),
        canvas_NL=canvas,
        guesses_ZNL=guess[None],
        logp_ZNL=torch.where(canvas == M, probability.log(), 0.0)[None],
        confidence_ZNL=probability[None],
    )


ROLLOUT = hand_rollout()
ROLLOUT = replace(ROLLOUT, snapshots=tuple(hand_snapshot(ROLLOUT, step) for step in range(3)))


def test_rollout_by_hand():
    assert ROLLOUT.region_L.tolist() == [False] * 3 + [True] * 4
    assert ROLLOUT.position_L.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert ROLLOUT.canvas(0)[:, PROMPT:].eq(M).all()
    assert ROLLOUT.canvas(1)[0].tolist() == [1, 2, 3, 4, M, M, M]
    assert ROLLOUT.canvas(2)[3].tolist() == [0, 5, 6, M, M, 3, E]


def test_defaults_are_the_papers():
    assert (FullyMasked().prompt_mask_prob, FullyMasked().shared) == (0.15, False)
    assert (Branches(eos_id=E).prompt_mask_prob, Branches(eos_id=E).shared) == (0.0, False)
    own = OwnGuesses(eos_id=E)
    assert (own.steps, own.choose, own.positions) == (8, largest_advantages, all_masked)
    assert (own.confidence_weight, own.length_weight) == (True, True)
    assert (DiffuGRPO().prompt_mask_prob, DiffuGRPO().epsilon, DiffuGRPO().beta) == (0.15, 0.5, 0.04)
    assert (MDPO().steps, MDPO().epsilon, MDPO().beta) == (8, 0.2, 0.02)
    assert (DiSPO().alpha, DiSPO().branches, DiSPO().degree, DiSPO().shared_step) == (0.5, 2, 4.0, False)
    assert (Threshold().threshold, Factor().factor) == (0.9, 1.0)
    assert RunningConfidence() == RunningConfidence(confidence="probability", statistic="latest", scope="block")


def test_branches_by_hand():
    canvas = ROLLOUT.canvas(1)
    fills = torch.where(canvas == M, torch.tensor([[[5]], [[E]], [[3]]]), canvas)  # Z = 3, every mask alike
    numbers = torch.zeros(fills.shape)
    snapshot = replace(ROLLOUT.snapshots[1], guesses_ZNL=fills, logp_ZNL=numbers, confidence_ZNL=numbers)
    rollout = replace(ROLLOUT, snapshots=(snapshot,))
    rewards = torch.arange(12.0).view(2, 2, 3)
    batch = Branches(eos_id=E, prompt_mask_prob=1.0)(rollout, rewards, Uniforms(), 0, 1)
    assert batch.inputs_FL.tolist() == [
        [M, M, M, 4, M, M, M],
        [M, M, M, M, M, 7, M],
        [0, M, M, E, 1, M, M],
        [0, M, M, M, M, M, E],
    ]
    assert torch.equal(batch.attention_FL, ROLLOUT.attention_NL)
    assert batch.forward_R.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.unit_R.tolist() == list(range(12))
    assert batch.advantage_U.tolist() == list(range(12))
    assert torch.equal(batch.targets_RL, fills.transpose(0, 1).flatten(0, 1))
    assert batch.scored_RL[:, PROMPT:].int().tolist() == [
        *([0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 1]),
        *([1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1]),
        *([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
        *([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]),
    ]
    assert not bool(batch.scored_RL[:, :PROMPT].any())
    assert torch.equal(batch.token_weight_RL, batch.scored_RL.float())
    per_row = Branches(eos_id=E, prompt_mask_prob=1.0, per_row=True)(rollout, rewards, Uniforms(), 0, 1)
    counts = [3, 1, 3, 3, 1, 3, 0, 0, 0, 3, 1, 3]
    expected = [
        [scored / max(1, count) for scored in row] for row, count in zip(batch.scored_RL.tolist(), counts, strict=True)
    ]
    assert torch.equal(per_row.token_weight_RL, torch.tensor(expected))
    plain = Branches(eos_id=E)(rollout, rewards, Uniforms(), 0, 1)
    assert torch.equal(plain.inputs_FL, canvas)
    shared = Branches(eos_id=E, prompt_mask_prob=0.5, shared=True)(rollout, rewards, Uniforms(), 2, 1)
    hidden = mask_prompt(rollout, 0.5, Uniforms(), 2, shared=True)
    assert torch.equal(shared.inputs_FL, canvas.masked_fill(hidden, M))


def test_step_choices_by_hand():
    advantages = torch.tensor(
        [[[1.0, -3.0, 0.0, 2.0], [-1.0, 3.0, 0.0, -2.5]], [[0.0, 0.0, 4.0, 0.0], [0.0, 0.0, 4.0, 1.0]]]
    )
    assert largest_advantages(advantages, 3, Uniforms(), ROLLOUT).tolist() == [[1, 3, 0], [2, 3, 0]]
    for steps, count, expected in (
        (4, 2, [1, 3]),
        (8, 4, [1, 3, 5, 7]),
        (5, 2, [1, 4]),
        (7, 3, [1, 3, 6]),
        (3, 3, [0, 1, 2]),
        (4, 1, [3]),
    ):
        assert spread_steps(torch.zeros(2, 2, steps), count, Uniforms(), ROLLOUT).tolist() == [expected] * 2
    chosen = [random_steps(torch.zeros(2, 2, 5), 3, Uniforms().key(seed), ROLLOUT) for seed in range(200)]
    assert all(len(set(row)) == 3 for choice in chosen for row in choice.tolist())
    frequency = torch.stack(chosen).flatten().bincount(minlength=5) / 1200
    assert bool(((frequency - 0.2).abs() < 0.04).all())
    assert sum(choice[0].tolist() == choice[1].tolist() for choice in chosen) < 20


def test_positions_by_hand():
    states = ROLLOUT.snapshots

    def at(positions, step):
        return positions(ROLLOUT, states[step], step, E)[:, PROMPT:].int().tolist()

    assert at(all_masked, 1) == [[0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]]
    assert at(committed, 1) == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert at(masked_through_eos, 1) == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    visible = replace(states[1], canvas_NL=states[1].canvas_NL.index_fill(1, torch.tensor([0]), M))
    assert not bool(all_masked(ROLLOUT, visible, 1, E)[:, :PROMPT].any())


def test_own_guesses_by_hand():
    advantages = torch.tensor([[[0.0, 1.0, 2.0], [0.0, -1.0, -2.0]], [[3.0, 0.0, 1.0], [-3.0, 0.0, 1.0]]])
    rollout = replace(ROLLOUT, exact=True)
    batch = OwnGuesses(eos_id=E, steps=2)(rollout, advantages, Uniforms(), 0, 1)
    rows = [(0, 2), (0, 1), (1, 2), (1, 1), (2, 0), (2, 2), (3, 0), (3, 2)]  # (sample, step)
    for row, (sample, step) in enumerate(rows):
        state = ROLLOUT.snapshots[step]
        masked = state.canvas_NL[sample] == M
        count = int(masked.sum())
        assert torch.equal(batch.inputs_FL[row], state.canvas_NL[sample])
        assert torch.equal(batch.targets_RL[row], state.guesses_ZNL[0, sample])
        assert torch.equal(batch.attention_FL[row], ROLLOUT.attention_NL[sample])
        assert torch.equal(batch.scored_RL[row], masked)
        close(batch.token_weight_RL[row], state.confidence_ZNL[0, sample] / count)
        close(batch.advantage_U[row], float(advantages[sample // 2, sample % 2, step]) * 4 / count)
        assert torch.equal(batch.old_RL[row], state.logp_ZNL[0, sample])
    guided = OwnGuesses(eos_id=E, steps=2)(replace(ROLLOUT, exact=False), advantages, Uniforms(), 0, 1)
    assert guided.old_RL is None  # what was recorded is not what scoring gives
    assert batch.forward_R.tolist() == batch.unit_R.tolist() == list(range(8))
    assert batch.temperature == 0.5
    greedy = OwnGuesses(eos_id=E, steps=9)(replace(ROLLOUT, temperature=0.0), advantages, Uniforms(), 0, 1)
    assert greedy.temperature == 1.0
    assert len(greedy.advantage_U) == 12


def test_own_guesses_without_weights_or_positions_by_hand():
    advantages = torch.ones(2, 2, 3)
    own = OwnGuesses(eos_id=E, steps=3, choose=spread_steps, confidence_weight=False, length_weight=False)
    batch = own(ROLLOUT, advantages, Uniforms(), 0, 1)
    close(batch.token_weight_RL.sum(1), torch.ones(12))
    close(batch.advantage_U, torch.ones(12))
    ended = replace(own, positions=masked_through_eos, length_weight=True)(ROLLOUT, advantages, Uniforms(), 0, 1)
    counts = ended.scored_RL.sum(1)
    assert counts.tolist() == [4, 2, 1, 4, 1, 2, 1, 0, 0, 2, 3, 2]
    close(ended.token_weight_RL.sum(1), (counts > 0).float())
    close(ended.advantage_U, 4 / counts.clamp(min=1))
