"""Every function of credit, masking, likelihood, surrogate and unmasking, on cases worked out by hand."""

from dataclasses import replace

import pytest
import torch

from small import EOS, MASK, small_denoiser
from unmask import credit
from unmask.denoisers.base import TargetLogProb
from unmask.likelihood import per_token, row_logp, token_count, unit_count
from unmask.masking import (
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
    through_first_eos,
)
from unmask.methods import MDPO, DiffuGRPO, DiSPO
from unmask.surrogate import Clipped, Penalty, k2, k3
from unmask.types import Rollout, Snapshot, Views
from unmask.uniforms import Uniforms
from unmask.unmasking import (
    MEASURES,
    RULES,
    SCHEDULES,
    Entropy,
    Factor,
    LeftToRight,
    LowConfidence,
    Random,
    RunningConfidence,
    Seen,
    Threshold,
    TopKMargin,
)

M, E = MASK, EOS
ONE = torch.tensor(1.0)


def close(ours, expected):
    torch.testing.assert_close(
        torch.as_tensor(ours), torch.as_tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6
    )


# ---- credit ----

STEPS = torch.tensor([[[0.0, 1.0, 0.5, 0.25]]])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (credit.step_outcome, [0.25, 0.25, 0.25, 0.25]),
        (credit.step_reward, [0.0, 1.0, 0.5, 0.25]),
        (credit.step_difference, [0.0, 1.0, -0.5, -0.25]),
        (credit.future_mean, [1.75 / 4, 1.75 / 3, 0.375, 0.25]),
        (credit.difference_and_future, [1.75 / 3, 1.375, -0.25, 0.0]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_scores_of_steps(score, expected):
    two = torch.cat([STEPS, STEPS + 1], dim=1)
    close(score(two)[0, 0], expected)
    assert score(two).shape == two.shape
    close(score(STEPS + 1)[0, 0, 0], score(two)[0, 1, 0])


def test_a_first_step_is_compared_with_nothing():
    close(credit.step_difference(STEPS + 1)[0, 0], [1.0, 1.0, -0.5, -0.25])
    close(credit.difference_and_future(STEPS[..., :1] + 3)[0, 0], [6.0])


def test_groups_and_branches():
    rewards = torch.tensor([[[1.0, 3.0], [2.0, 8.0], [6.0, 1.0]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    close(credit.centered(rewards)[0], [[-2.0, -1.0], [-1.0, 4.0], [3.0, -3.0]])
    close(credit.centered_per_state(rewards)[0], [[-1.0, 1.0], [-3.0, 3.0], [2.5, -2.5]])
    close(credit.z_score(rewards)[0, :, 0], [-2 / (7**0.5 + 1e-4), -1 / (7**0.5 + 1e-4), 3 / (7**0.5 + 1e-4)])
    tiny = 1e-4 / (2**0.5 * 1e-4 + 1e-4)
    close(credit.z_score(torch.tensor([[0.0, 2e-4]])), [[-tiny, tiny]])
    close(credit.z_score(rewards)[1], torch.zeros(3, 2))
    close(credit.z_score(rewards[:, :1]), torch.zeros(2, 1, 2))


# ---- a rollout by hand: two prompts (one with a pad), two samples each, four tokens in three steps ----

PROMPT = 3
TOKENS = [[1, 2, 3, 4, 5, E, 6], [1, 2, 3, 7, 7, 7, 7], [0, 5, 6, E, 1, E, 2], [0, 5, 6, 1, 2, 3, E]]
REVEALED_AT = [[0, 1, 2, 2], [2, 1, 0, 2], [0, 0, 1, 2], [2, 2, 1, 0]]
GUESSES = [  # of every step: the proposal where masked
    [[4, 5, 6, 1], [1, 2, 7, E], [E, 1, 3, 3], [2, E, 1, E]],
    [[4, 5, E, 1], [E, 7, 7, 3], [E, 1, E, 4], [5, 6, 3, E]],
    [[4, 5, E, 6], [7, 7, 7, 7], [E, 1, E, 2], [1, 2, 3, E]],
]


def hand_rollout(**changes) -> Rollout:
    tokens = torch.tensor(TOKENS)
    attention = torch.ones_like(tokens).bool()
    attention[2:, 0] = False
    region = torch.arange(7) >= PROMPT
    rollout = Rollout(
        tokens_NL=tokens,
        attention_NL=attention,
        completion_NL=through_first_eos(tokens, region, E),
        block_NL=region.long().expand_as(tokens) - 1,
        revealed_at_NL=torch.nn.functional.pad(torch.tensor(REVEALED_AT), (PROMPT, 0), value=-1),
        sampled_logp_NL=torch.zeros(tokens.shape),
        confidence_NL=torch.zeros(tokens.shape),
        prompt_N=torch.tensor([4, 4, 9, 9]),
        sample_N=torch.tensor([0, 1, 0, 1]),
        prompt_length=PROMPT,
        group_size=2,
        steps=3,
        temperature=0.5,
        mask_id=M,
        remasking=False,
    )
    snapshots = tuple(hand_snapshot(rollout, step) for step in range(3))
    return replace(rollout, **({"snapshots": snapshots} | changes))


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


def test_rollout_by_hand():
    assert ROLLOUT.region_L.tolist() == [False] * 3 + [True] * 4
    assert ROLLOUT.position_L.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert ROLLOUT.canvas(0)[:, PROMPT:].eq(M).all()
    assert ROLLOUT.canvas(1)[0].tolist() == [1, 2, 3, 4, M, M, M]
    assert ROLLOUT.canvas(2)[3].tolist() == [0, 5, 6, M, M, 3, E]


# ---- masking ----


def test_through_first_eos():
    region = torch.tensor([False, True, True, True, True])
    tokens = torch.tensor([[E, 1, 2, 3, 4], [E, E, 1, E, 2], [1, 2, 3, E, E], [1, 2, E, 4, 5]])
    assert through_first_eos(tokens, region, E).int().tolist() == [
        [0, 1, 1, 1, 1],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 0, 0],
    ]


def test_prompt_masks():
    def drawn(prob, update=0, shared=False):
        return mask_prompt(ROLLOUT, prob, Uniforms(), update, shared=shared)

    maskable = ROLLOUT.attention_NL & ~ROLLOUT.region_L
    assert torch.equal(drawn(1.0), maskable)
    assert not bool(drawn(0.0).any())
    samples = torch.arange(4000)
    first_row = {name: value[:1].expand(4000, -1) for name, value in vars(ROLLOUT).items() if name.endswith("_NL")}
    wide = replace(ROLLOUT, **first_row, prompt_N=torch.zeros_like(samples), sample_N=samples)
    single = mask_prompt(wide, 0.3, Uniforms(), 0, shared=False)[:, :PROMPT]
    assert abs(single.float().mean() - 0.3) < 0.02
    assert abs(torch.corrcoef(single.float().T)[0, 1]) < 0.06
    assert len(mask_prompt(wide, 0.3, Uniforms(), 0, shared=True).unique(dim=0)) == 1
    assert len({tuple(drawn(0.5, update, shared=True).flatten().tolist()) for update in range(8)}) > 4
    both = drawn(0.5, shared=True)
    assert torch.equal(both[0], both[1])
    expected = Uniforms().key("prompt mask", 0, ROLLOUT.prompt_N[:, None]).key(ROLLOUT.position_L).draw() < 0.5
    assert torch.equal(both, expected & maskable)


@pytest.mark.parametrize("shared", [False, True])
def test_fully_masked(shared):
    rewards = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    views = FullyMasked(prompt_mask_prob=0.5, shared=shared)(ROLLOUT, rewards, Uniforms(), 3, 4)
    hidden = mask_prompt(ROLLOUT, 0.5, Uniforms(), 3, shared=shared)
    rows = [0, 2] if shared else [0, 1, 2, 3]
    for forward, row in enumerate(rows):
        prompt = [M if hide else token for hide, token in zip(hidden[row, :3].tolist(), TOKENS[row][:3], strict=True)]
        assert views.inputs_FL[forward].tolist() == [*prompt, M, M, M, M]
    assert views.attention_FL.tolist() == ROLLOUT.attention_NL[rows].tolist()
    assert views.forward_R.tolist() == ([0, 0, 1, 1] if shared else [0, 1, 2, 3])
    assert views.unit_R.tolist() == [0, 1, 2, 3]
    assert views.credit_U.tolist() == [1.0, -1.0, 0.5, -0.5]
    assert views.targets_RL.tolist() == TOKENS
    assert views.scored_RL[:, PROMPT:].int().tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
        [1, 0, 0, 0],
        [1, 1, 1, 1],
    ]
    assert torch.equal(views.weight_RL, views.scored_RL.float())
    assert views.temperature == 1.0
    assert views.old_RL is None


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


def test_branches():
    canvas = ROLLOUT.canvas(1)
    fills = torch.where(canvas == M, torch.tensor([[[5]], [[E]], [[3]]]), canvas)  # Z = 3, every mask alike
    numbers = torch.zeros(fills.shape)
    snapshot = replace(ROLLOUT.snapshots[1], guesses_ZNL=fills, logp_ZNL=numbers, confidence_ZNL=numbers)
    rollout = hand_rollout(snapshots=(snapshot,))
    rewards = torch.arange(12.0).view(2, 2, 3)
    views = Branches(eos_id=E, prompt_mask_prob=1.0)(rollout, rewards, Uniforms(), 0, 1)
    assert views.inputs_FL.tolist() == [
        [M, M, M, 4, M, M, M],
        [M, M, M, M, M, 7, M],
        [0, M, M, E, 1, M, M],
        [0, M, M, M, M, M, E],
    ]
    assert torch.equal(views.attention_FL, ROLLOUT.attention_NL)
    assert views.forward_R.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert views.unit_R.tolist() == list(range(12))
    assert views.credit_U.tolist() == list(range(12))
    assert torch.equal(views.targets_RL, fills.transpose(0, 1).flatten(0, 1))
    assert views.scored_RL[:, PROMPT:].int().tolist() == [
        *([0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 1]),
        *([1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1]),
        *([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
        *([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]),
    ]
    assert not bool(views.scored_RL[:, :PROMPT].any())
    assert torch.equal(views.weight_RL, views.scored_RL.float())
    plain = Branches(eos_id=E)(rollout, rewards, Uniforms(), 0, 1)
    assert torch.equal(plain.inputs_FL, canvas)
    shared = Branches(eos_id=E, prompt_mask_prob=0.5, shared=True)(rollout, rewards, Uniforms(), 2, 1)
    hidden = mask_prompt(rollout, 0.5, Uniforms(), 2, shared=True)
    assert torch.equal(shared.inputs_FL, canvas.masked_fill(hidden, M))


def test_step_choices():
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


def test_positions():
    states = ROLLOUT.snapshots

    def at(positions, step):
        return positions(ROLLOUT, states[step], step, E)[:, PROMPT:].int().tolist()

    assert at(all_masked, 1) == [[0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]]
    assert at(committed, 1) == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert at(masked_through_eos, 1) == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
    visible = replace(states[1], canvas_NL=states[1].canvas_NL.index_fill(1, torch.tensor([0]), M))
    assert not bool(all_masked(ROLLOUT, visible, 1, E)[:, :PROMPT].any())


def test_own_guesses():
    advantages = torch.tensor([[[0.0, 1.0, 2.0], [0.0, -1.0, -2.0]], [[3.0, 0.0, 1.0], [-3.0, 0.0, 1.0]]])
    views = OwnGuesses(eos_id=E, steps=2)(ROLLOUT, advantages, Uniforms(), 0, 1)
    rows = [(0, 2), (0, 1), (1, 2), (1, 1), (2, 0), (2, 2), (3, 0), (3, 2)]  # (sample, step)
    for row, (sample, step) in enumerate(rows):
        state = ROLLOUT.snapshots[step]
        masked = state.canvas_NL[sample] == M
        count = int(masked.sum())
        assert torch.equal(views.inputs_FL[row], state.canvas_NL[sample])
        assert torch.equal(views.targets_RL[row], state.guesses_ZNL[0, sample])
        assert torch.equal(views.attention_FL[row], ROLLOUT.attention_NL[sample])
        assert torch.equal(views.scored_RL[row], masked)
        close(views.weight_RL[row], state.confidence_ZNL[0, sample] / count)
        close(views.credit_U[row], float(advantages[sample // 2, sample % 2, step]) * 4 / count)
        assert torch.equal(views.old_RL[row], state.logp_ZNL[0, sample])
    assert views.forward_R.tolist() == views.unit_R.tolist() == list(range(8))
    assert views.temperature == 0.5
    greedy = OwnGuesses(eos_id=E, steps=9)(hand_rollout(temperature=0.0), advantages, Uniforms(), 0, 1)
    assert greedy.temperature == 1.0
    assert len(greedy.credit_U) == 12


def test_own_guesses_without_weights_or_positions():
    advantages = torch.ones(2, 2, 3)
    own = OwnGuesses(eos_id=E, steps=3, choose=spread_steps, confidence_weight=False, length_weight=False)
    views = own(ROLLOUT, advantages, Uniforms(), 0, 1)
    close(views.weight_RL.sum(1), torch.ones(12))
    close(views.credit_U, torch.ones(12))
    ended = replace(own, positions=masked_through_eos, length_weight=True)(ROLLOUT, advantages, Uniforms(), 0, 1)
    counts = ended.scored_RL.sum(1)
    assert counts.tolist() == [4, 2, 1, 4, 1, 2, 1, 0, 0, 2, 3, 2]
    close(ended.weight_RL.sum(1), (counts > 0).float())
    close(ended.credit_U, 4 / counts.clamp(min=1))


# ---- likelihood ----

DENOISER = small_denoiser()


def hand_views(scored) -> Views:
    """Three forwards with 2, 1 and 2 rows."""
    inputs = torch.tensor([[1, M, M, M], [M, 2, M, 3], [4, M, M, 5]])
    scored = torch.tensor(scored).bool()
    return Views(
        inputs_FL=inputs,
        attention_FL=torch.ones_like(inputs).bool(),
        forward_R=torch.tensor([0, 0, 1, 2, 2]),
        targets_RL=torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7], [0, 2, 1, 3], [4, 0, 1, 5], [4, 2, 3, 5]]),
        scored_RL=scored,
        weight_RL=scored / 2,
        unit_R=torch.tensor([0, 0, 1, 2, 3]),
        credit_U=torch.tensor([1.0, -1.0, 0.0, 2.0]),
        length_U=torch.tensor([4, 2, 1, 0]),
        temperature=0.7,
    )


SCORED = [[0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_row_logp_equals_one_forward_a_row():
    views = hand_views(SCORED)
    ours = row_logp(DENOISER, views)
    for row in range(5):
        forward = views.forward_R[row]
        (logits,) = DENOISER(
            views.inputs_FL[forward][None],
            views.attention_FL[forward][None],
            torch.arange(4)[None],
            lambda logits_CV, chunk: (logits_CV,),
        )
        logp = (logits[0] / 0.7).log_softmax(1).gather(1, views.targets_RL[row][:, None])[:, 0]
        close(ours[row].detach(), (logp * views.scored_RL[row]).detach())


def test_row_logp_of_views_without_scored_positions():
    assert not bool(row_logp(DENOISER, hand_views([[0] * 4] * 5)).any())


def test_only_scored_columns_are_asked():
    widths = []

    class Asked(type(DENOISER)):
        def forward(self, tokens_FL, attention_FL, asked_FA, answer, guidance=None, beside=None):
            widths.append(asked_FA.tolist())
            return super().forward(tokens_FL, attention_FL, asked_FA, answer, guidance)

    asked = Asked(DENOISER.model, mask_id=M, eos_id=E)
    row_logp(asked, hand_views(SCORED))
    assert [set(columns) for columns in widths[0]] == [{1, 2, 3}, {0, 1, 2}, {0, 1, 2}]
    row_logp(asked, hand_views([[0] * 4] * 5))
    assert [len(columns) for columns in widths[1]] == [1, 1, 1]


def test_target_log_prob_is_in_float32_at_least():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[0, 1], [2, 3], [4, 4]])
    (exact,) = TargetLogProb(targets, 0.5)(logits, slice(0, 3))
    torch.testing.assert_close(exact, (logits / 0.5).log_softmax(1).gather(1, targets))
    (half,) = TargetLogProb(targets)(logits.bfloat16()[1:], slice(1, 3))
    assert half.dtype == torch.float32
    close(half, logits.bfloat16().float().log_softmax(1).gather(1, targets)[1:])


def test_scores_and_counts():
    views = hand_views(SCORED)
    logp = torch.arange(20.0).view(5, 4)
    scores = per_token(logp, views)
    assert torch.equal(scores.value_UK, logp)
    assert torch.equal(scores.weight_UK, views.weight_RL)
    assert (token_count(views), unit_count(views)) == (7.0, 4.0)
    assert token_count(views).dtype == unit_count(views).dtype == torch.float32


def test_take_units_and_micro_batches():
    views = hand_views(SCORED)
    taken = views.take_units(torch.tensor([True, False, False, True]))
    assert taken.inputs_FL.tolist() == views.inputs_FL[[0, 2]].tolist()
    assert taken.forward_R.tolist() == [0, 0, 1]
    assert taken.unit_R.tolist() == [0, 0, 1]
    assert taken.targets_RL.tolist() == views.targets_RL[[0, 1, 4]].tolist()
    assert taken.credit_U.tolist() == [1.0, 2.0]
    parts = [keep.tolist() for _, keep in views.micro_batches(2)]
    assert parts == [[True, True, False, False], [False, False, True, True]]
    recorded = replace(views, old_RL=torch.arange(20.0).view(5, 4)).take_units(torch.tensor([False, True, True, False]))
    assert recorded.old_RL.tolist() == [[8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]]


# ---- surrogate ----

RATIOS = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5], [0.8, 1.2, 2.0]])
CREDIT = torch.tensor([2.0, -1.0, 0.0])
CLIP = Clipped(epsilon=0.25)


def test_clipped_token_by_hand():
    old = torch.full((3, 3), -2.0)
    now = (old + RATIOS.log()).requires_grad_()
    weight = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    loss = CLIP(now, old, CREDIT, weight, torch.tensor(4.0))
    close(loss.detach(), -(2 * (0.5 + 1.0 + 1.25) - 2 * (0.75 + 1.0 + 1.5)) / 4)
    loss.backward()
    close(now.grad, [[-1.0 / 4, -2.0 / 4, 0.0], [0.0, 2.0 / 4, 3.0 / 4], [0.0, 0.0, 0.0]])
    assert CLIP.clipped(now, old, CREDIT).tolist() == [
        [False, False, True],
        [True, False, False],
        [False] * 3,
    ]
    assert not bool(Clipped(epsilon=0.0).clipped(old, old, CREDIT).any())


def test_divergences_by_hand():
    now, other = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    close(k2(now, other), [[0.125, 0.5]])
    close(k3(now, other), [[0.60653066 + 0.5 - 1, 2.71828183 - 1 - 1]])
    close(k3(now, now), [[0.0, 0.0]])
    penalty = Penalty(estimate=k2, coefficient=0.1)
    close(
        penalty(now, other, torch.tensor([[1.0, 3.0]]), torch.tensor([4]), torch.tensor(5.0)), 0.1 * (0.125 + 1.5) / 5
    )


def test_a_term_adds_its_parts_and_reports_sums():
    (term,) = DiffuGRPO(epsilon=0.25, beta=0.5).terms(E)
    views = hand_views(SCORED)
    old = torch.full((5, 4), -1.0)
    now, reference = old + 0.5, old - 0.25
    rows = replace(
        views, unit_R=torch.arange(5), credit_U=torch.tensor([1.0, -1.0, 0.0, 2.0, 1.0]), length_U=torch.ones(5).long()
    )
    loss, sums = term.loss(rows, now, old, reference, torch.tensor(2.0))
    ratio, k3_now = 0.5 * 2.71828183**0.5, 2.71828183**-0.75 + 0.75 - 1
    policy = -(0.5 * 2 * 1.25 - 2 * ratio + 0.5 * 1 * 2 * 1.25) / 2
    close(loss, policy + 0.5 * 0.5 * 7 * k3_now / 2)
    close(replace(term, weight=0.1).loss(rows, now, old, reference, torch.tensor(2.0))[0], 0.1 * loss)
    assert (sums["weight"], sums["clip_ratio"]) == (7.0, 3.0)
    close(sums["approx_kl"], 7 * (2.71828183**-0.5 + 0.5 - 1))
    close(sums["kl"], 7 * k3_now)
    alone, sums = term.loss(rows, now, old, None, torch.tensor(2.0))
    close(alone, policy)
    assert "kl" not in sums


# ---- unmasking ----


def seen(confidence, masked=None, *, running=None, count=1, remaining=0, uniforms=None) -> Seen:
    confidence = torch.tensor(confidence)
    return Seen(
        masked_NC=torch.ones_like(confidence).bool() if masked is None else torch.tensor(masked).bool(),
        confidence_NC=confidence,
        running_NC=confidence if running is None else torch.tensor(running),
        position_C=torch.arange(confidence.shape[1]),
        count=count,
        remaining=remaining,
        uniforms=(uniforms or Uniforms()).key(torch.arange(len(confidence))[:, None]),
    )


CONFIDENCE = [[0.2, 0.9, 0.5, 0.9], [0.7, 0.1, 0.6, 0.3]]
MASKED = [[1, 0, 1, 1], [1, 1, 1, 0]]


def test_measures_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log() + 3.0  # any shift
    tokens = torch.tensor([1, 2])
    normaliser = logits.logsumexp(1)
    close(MEASURES["probability"](logits, normaliser, tokens), [0.3, 0.8])
    close(MEASURES["margin"](logits, normaliser, tokens), [0.2, 0.7])
    entropy = -(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]) * (logits - 3.0)).sum(1)
    close(MEASURES["entropy"](logits, normaliser, tokens), -entropy)


@pytest.mark.parametrize("rule", [LowConfidence(), TopKMargin(), Entropy()], ids=lambda rule: rule.name)
def test_the_surest_are_committed(rule):
    expected = {0: MASKED, 1: [[1, 0, 1, 0], [0, 1, 1, 0]], 2: [[1, 0, 0, 0], [0, 1, 0, 0]], 3: [[0] * 4] * 2}
    for count, after in expected.items():
        assert rule(seen(CONFIDENCE, MASKED, count=count)).int().tolist() == after
    assert rule(seen([[0.5, 0.5, 0.5]])).tolist() == [[False, True, True]]  # ties: the lower column
    assert (rule.adaptive, rule.remasks) == (False, False)


def test_rules_measure_what_they_say():
    expected = {"margin": "margin", "entropy": "entropy", "left_to_right": "entropy"}
    assert all(rule().measure is MEASURES[expected.get(name, "probability")] for name, rule in RULES.items())
    assert all(RunningConfidence(confidence=name).measure is measure for name, measure in MEASURES.items())
    assert {name for name, rule in RULES.items() if rule.adaptive} == {"threshold", "factor"}
    assert {name for name, rule in RULES.items() if rule.remasks} == {"rcr"}


def test_left_to_right():
    assert LeftToRight()(seen(CONFIDENCE, MASKED)).int().tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert LeftToRight()(seen(CONFIDENCE, MASKED, count=2)).int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_random_positions():
    after = torch.stack([Random()(seen(CONFIDENCE, MASKED, uniforms=Uniforms().key(seed))) for seed in range(600)])
    assert bool((after.sum(2) == 2).all())
    assert bool((after <= torch.tensor(MASKED).bool()).all())
    chosen = (~after & torch.tensor(MASKED).bool()).float().mean(0)
    close(chosen.sum(1), [1.0, 1.0])
    assert bool(((chosen - torch.tensor(MASKED) / 3).abs() < 0.07).all())
    assert len(after.flatten(1).unique(dim=0)) == 9  # rows draw apart


@pytest.mark.parametrize(
    ("threshold", "after"),
    [
        (0.95, [[1, 0, 1, 0], [0, 1, 1, 0]]),
        (0.6, [[1, 0, 1, 0], [0, 1, 0, 0]]),
        (0.5, [[1, 0, 0, 0], [0, 1, 0, 0]]),
        (1.0, [[1, 0, 1, 0], [0, 1, 1, 0]]),
        (0.1, [[0] * 4, [0] * 4]),
    ],
)
def test_threshold(threshold, after):
    assert Threshold(threshold=threshold)(seen(CONFIDENCE, MASKED)).int().tolist() == after
    none = torch.zeros(2, 4).int().tolist()
    assert Threshold(threshold=threshold)(seen(CONFIDENCE, none)).int().tolist() == none


@pytest.mark.parametrize(
    ("confidence", "after"),
    [
        ([0.1, 0.2, 0.3], [1, 1, 0]),  # the best alone
        ([0.6, 0.7, 0.1], [1, 0, 1]),  # v_2 = 0.6 < 1 - 1/3
        ([0.7, 0.7, 0.1], [0, 0, 1]),  # v_3 = 0.1 < 1 - 1/4
        ([0.7, 0.9, 0.8], [1, 0, 0]),  # v_3 = 0.7 < 3/4
        ([0.75, 0.9, 0.8], [0, 0, 0]),
        ([0.5, 0.6, 0.2], [1, 0, 1]),
    ],
)
def test_factor(confidence, after):
    assert Factor()(seen([confidence])).int().tolist() == [after]


def test_factor_stops_at_the_first_misfit():
    # 1 - 2/3, 1 - 2/4, 1 - 2/5, 1 - 2/6 for ranks 1 to 4 ...: rank 2 fails, whatever follows.
    rule = Factor(factor=2.0)
    assert rule(seen([[0.9, 0.3, 0.3, 0.3]])).int().tolist() == [[0, 1, 1, 1]]
    assert rule(seen([[0.9, 0.4, 0.4, 0.3]])).int().tolist() == [[0, 0, 1, 1]]
    assert rule(seen([[0.9, 0.4, 0.5, 0.3]], [[1, 0, 1, 1]])).int().tolist() == [[0, 0, 0, 1]]
    falling = Factor(factor=0.9)  # thresholds 0.55 (rank 1), 0.7, 0.775, 0.82
    assert falling(seen([[0.9, 0.69, 0.69, 0.69]])).int().tolist() == [[0, 1, 1, 1]]
    assert Factor(factor=1e-3).factor == 1e-3
    assert Threshold(threshold=1.0).threshold == 1.0


def test_running_confidence_masks_the_least_confident_again():
    running = [[0.2, 0.9, 0.5, 0.8], [0.7, 0.1, 0.6, 0.3]]
    rule = RunningConfidence()
    assert rule(seen(CONFIDENCE, MASKED, running=running, remaining=2)).int().tolist() == [
        [1, 0, 1, 0],
        [0, 1, 0, 1],
    ]
    assert rule(seen(CONFIDENCE, MASKED, running=running, remaining=0)).int().tolist() == [[0] * 4] * 2
    assert rule(seen(CONFIDENCE, MASKED, running=running, remaining=4)).int().tolist() == [[1] * 4] * 2


def test_schedules_by_hand():
    assert SCHEDULES["uniform"](7, 3) == (3, 2, 2)
    assert SCHEDULES["uniform"](2, 4) == (1, 1, 0, 0)
    assert SCHEDULES["linear"](10, 4) == (3, 2, 3, 2)  # 10 - 7, 7 - 5, 5 - 2, 2 - 0
    assert SCHEDULES["square"](8, 4) == (1, 1, 3, 3)  # 8, 7.5, 6, 3.5, 0 masks left
    assert SCHEDULES["cosine"](10, 3) == (2, 3, 5)  # 10, 8.66, 5, 0 masks left
