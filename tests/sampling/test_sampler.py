"""The sampler: tokens depend on prompt and sample alone and follow the denoiser; records are true."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.forwards import count_forwards
from helpers.rules import RCR, SCHEDULED
from helpers.small import EOS, MASK, VOCABULARY, few, prompts_of, small_denoiser, surprise
from unmask.denoisers.base import Guidance
from unmask.denoisers.head.reducers import AllLogits, TargetLogProb
from unmask.denoisers.head.vocabulary import GivenLogits
from unmask.denoisers.head.workspace import Workspace
from unmask.errors import UserError
from unmask.sampling.proposals import draw
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedules import SCHEDULES
from unmask.sampling.unmasking import RULES, LowConfidence, Random, RunningConfidence, Threshold
from unmask.uniforms import Uniforms

DENOISER = small_denoiser()
ROWS = [[1, 2, 3], [4, 5], [6, 7, 1, 2, 3], [2]]
KEEPING = [rule for rule in SCHEDULED if not rule.remasks]


def name_of(rule) -> str:
    return "-".join([rule.name, *(str(value) for value in vars(rule).values())])


def sampler_of(rule=None, temperature=1.0, **changes) -> Sampler:
    settings = {"max_new_tokens": 8, "block_length": 4, "steps": 4, "temperature": temperature} | changes
    return Sampler(unmasking=rule or LowConfidence(), **settings)


def traced(sampler, prompts, record=None):
    """The canvas before each step and after the last, and the rollout."""
    blank = torch.nn.functional.pad(prompts.tokens_NP, (0, sampler.max_new_tokens), value=MASK)
    states = [blank]
    rollout = sampler(DENOISER, prompts, Uniforms(), record, watch=lambda canvas: states.append(canvas.clone()))
    return torch.stack(states), rollout


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", [*(rule() for rule in RULES.values()), *RCR], ids=name_of)
def test_sampling_from_logits_that_are_not_finite_ends_and_its_log_probs_tell(rule, temperature, value):
    denoiser = small_denoiser()
    with torch.no_grad():
        denoiser.model.get_input_embeddings().weight[MASK] = value
    rollout = sampler_of(rule, temperature)(denoiser, prompts_of(ROWS), Uniforms())
    assert rollout.completion_NL.any(1).all()
    assert not rollout.sampled_logp_NL[rollout.completion_NL].isfinite().any()
    assert int(rollout.tokens_NL.max()) < VOCABULARY


# ---- what the tokens depend on ----


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", [rule() for rule in RULES.values()], ids=name_of)
@few
@given(order=st.permutations(range(len(ROWS))), size=st.integers(1, len(ROWS)), pads=st.integers(0, 4))
def test_completions_do_not_depend_on_the_batch(rule, temperature, order, size, pads):
    sampler = sampler_of(rule, temperature)
    rows = [ROWS[index] for index in order[:size]]
    together = sampler(DENOISER, prompts_of(rows, width=5 + pads), Uniforms())
    alone = sampler(DENOISER, prompts_of(rows[:1]), Uniforms())
    width, start = together.prompt_length, alone.prompt_length
    assert torch.equal(together.tokens_NL[0, width:], alone.tokens_NL[0, start:])
    assert torch.equal(together.completion_NL[0, width:], alone.completion_NL[0, start:])
    torch.testing.assert_close(together.sampled_logp_NL[0, width:], alone.sampled_logp_NL[0, start:], atol=1e-4, rtol=0)


def test_samples_and_seeds_differ_and_repeat():
    sampler = sampler_of(max_new_tokens=16, block_length=16)
    rollout = sampler(DENOISER, prompts_of(ROWS[:1], samples=range(4)), Uniforms(), group_size=4)
    assert rollout.group_size == 4
    assert len(rollout.tokens_NL.unique(dim=0)) == 4
    torch.manual_seed(1)
    again = sampler(DENOISER, prompts_of(ROWS[:1], samples=range(4)), Uniforms())
    assert torch.equal(again.tokens_NL, rollout.tokens_NL)
    other = sampler(DENOISER, prompts_of(ROWS[:1], samples=range(4)), Uniforms().key(1))
    assert not torch.equal(other.tokens_NL, rollout.tokens_NL)


@pytest.mark.parametrize("rule", [*(rule() for rule in RULES.values()), *RCR], ids=name_of)
@few
@given(
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    blocks=st.sampled_from([1, 2]),
    schedule=st.sampled_from(sorted(SCHEDULES)),
)
def test_all_masks_are_filled_and_the_prompt_stays(rule, temperature, blocks, schedule):
    sampler = sampler_of(rule, temperature, block_length=8 // blocks, schedule=SCHEDULES[schedule])
    prompts = prompts_of(ROWS)
    rollout = sampler(DENOISER, prompts, Uniforms())
    assert torch.equal(rollout.tokens_NL[:, :5], prompts.tokens_NP)
    assert not bool((rollout.tokens_NL == MASK).any())
    assert rollout.attention_NL.tolist() == [[*row.tolist(), *[True] * 8] for row in prompts.attention_NP]
    assert bool((rollout.revealed_at_NL[:, :5] == -1).all())
    assert bool((rollout.revealed_at_NL[:, 5:] >= 0).all())
    assert int(rollout.revealed_at_NL.max()) < rollout.steps
    assert rollout.block_NL[0].tolist() == [-1] * 5 + [index * blocks // 8 for index in range(8)]
    assert rollout.remasking == rule.remasks
    assert rule.adaptive or rollout.steps == sampler.steps


def test_completion_ends_with_the_first_end_of_sequence():
    rollout = sampler_of()(DENOISER, prompts_of([[1, EOS, 3], *ROWS], samples=range(8)), Uniforms())
    lengths = set()
    for row, completion in zip(rollout.tokens_NL.tolist(), rollout.completion_NL.tolist(), strict=True):
        region = row[5:]
        length = region.index(EOS) + 1 if EOS in region else len(region)
        assert completion == [False] * 5 + [True] * length + [False] * (8 - length)
        lengths.add(length)
    assert {1, 8} < lengths


# ---- schedules and states ----


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@few
@given(masks=st.integers(1, 64), steps=st.integers(1, 64))
def test_schedules_commit_everything(schedule, masks, steps):
    counts = schedule(masks, steps)
    assert len(counts) == steps
    assert sum(counts) == masks
    assert min(counts) >= 0


@pytest.mark.parametrize("rule", KEEPING, ids=name_of)
def test_revealed_at_keeps_every_canvas(rule):
    states, rollout = traced(sampler_of(rule, schedule=SCHEDULES["square"]), prompts_of(ROWS))
    assert torch.equal(torch.stack([rollout.canvas(step) for step in range(rollout.steps + 1)]), states)
    masks = [(states[step + 1, :, 5:] == MASK).sum(1).tolist() for step in range(4)]
    assert masks == [[7] * 4, [4] * 4, [3] * 4, [0] * 4]


@pytest.mark.parametrize("rule", RCR, ids=name_of)
def test_remasking_leaves_the_scheduled_number_of_masks(rule):
    sampler = sampler_of(rule, max_new_tokens=16, block_length=8, steps=8, schedule=SCHEDULES["linear"])
    states, rollout = traced(sampler, prompts_of(ROWS))
    counts = SCHEDULES["linear"](8, 4)
    for block, (start, stop) in enumerate(((0, 8), (8, 16))):
        first = 0 if rule.scope == "completion" else start
        for index in range(4):
            after = states[4 * block + index + 1][:, 5:]
            assert (after[:, first:stop] == MASK).sum(1).tolist() == [sum(counts[index + 1 :])] * len(ROWS)
            assert bool((after[:, stop:] == MASK).all())
    masked = states == MASK
    assert bool((masked[1:] & ~masked[:-1]).any())
    with pytest.raises(ValueError, match="snapshots"):
        rollout.canvas(1)


def test_remasking_options_differ():
    settings = {"max_new_tokens": 12, "block_length": 6, "steps": 12}
    results = [traced(sampler_of(rule, **settings), prompts_of(ROWS, samples=range(3)))[0] for rule in RCR]
    assert all(not torch.equal(a, b) for index, a in enumerate(results) for b in results[:index])


def test_random_orders_are_equally_likely():
    sampler = sampler_of(Random(), max_new_tokens=3, block_length=3, steps=3)
    rollout = sampler(DENOISER, prompts_of([[1]], samples=range(3000)), Uniforms())
    order = (rollout.revealed_at_NL[:, 1:] * torch.tensor([9, 3, 1])).sum(1)
    assert (
        surprise(torch.stack([(order == code).sum() for code in (5, 7, 11, 15, 19, 21)]), torch.full((6,), 1 / 6)) < 4
    )


# ---- what is recorded of the tokens ----


def rescored(states, tokens, temperature):
    """log p(tokens | state) of every state at every completion column."""
    query = torch.arange(5, tokens.shape[1]).expand(len(tokens), -1)
    attention = torch.nn.functional.pad(prompts_of(ROWS).attention_NP, (0, query.shape[1]), value=True)
    with torch.no_grad():
        reducer = TargetLogProb(tokens[:, 5:].reshape(-1, 1), temperature)
        return torch.stack([DENOISER(state, attention, query, reducer)[0][..., 0] for state in states])


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rule", [LowConfidence(), Random(), Threshold(threshold=0.6), *RCR[:4]], ids=name_of)
def test_logp_is_that_of_the_canvas_before_the_reveal(rule, temperature):
    states, rollout = traced(sampler_of(rule, temperature), prompts_of(ROWS))
    revealed = rollout.revealed_at_NL[None, :, 5:]
    for recorded, scored in (
        (rollout.sampled_logp_NL, rescored(states, rollout.tokens_NL, temperature or 1.0)),
        (rollout.confidence_NL.log(), rescored(states, rollout.tokens_NL, 1.0)),
    ):
        torch.testing.assert_close(recorded[:, 5:], scored.gather(0, revealed)[0], atol=1e-5, rtol=1e-5)
    assert bool((rollout.sampled_logp_NL[:, :5] == 0).all())


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if not rule.scheduled], ids=lambda rule: rule.name)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rules_without_a_schedule_take_any_number_of_steps(rule, schedule):
    """5 is no multiple of the 2 blocks, 1 is fewer."""
    tokens = [
        traced(sampler_of(rule(), steps=steps, schedule=SCHEDULES[schedule]), prompts_of([[1, 2]]))[1].tokens_NL
        for steps in (1, 5, 8)
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])


def test_draws_follow_softmax():
    infinite = -float("inf")
    logits = torch.tensor([[1.0, -1.0, 0.5, infinite, 2.0, 3.0], [infinite, 0.0, 0.0, 3.0, infinite, 9.0]])
    uniforms = Uniforms().key(torch.arange(2)[:, None], torch.arange(20_000)).draw()
    tokens = draw(GivenLogits(logits, 5, Workspace()), uniforms, 1.0).tokens_CZ
    for row, probabilities in zip(tokens, logits[:, :5].softmax(1), strict=True):
        assert surprise(row.bincount(minlength=5), probabilities) < 4
    edges = torch.tensor([[0.0, 1 - 2**-53], [0.0, 1 - 2**-53]], dtype=torch.float64)
    assert draw(GivenLogits(logits, 5, Workspace()), edges, 1.0).tokens_CZ.tolist() == [[0, 4], [1, 3]]
    quarters = torch.tensor([[0.0, 0.25, 0.5, 0.75]]).double()
    assert draw(GivenLogits(torch.zeros(1, 5), 4, Workspace()), quarters, 1.0).tokens_CZ.tolist() == [[0, 1, 2, 3]]


def test_tokens_of_one_step_follow_the_product_distribution():
    prompts = prompts_of([[1, 2]], samples=range(20_000))
    sampler = sampler_of(max_new_tokens=2, block_length=2, steps=1)
    tokens = sampler(DENOISER, prompts, Uniforms()).tokens_NL[:, 2:]
    canvas, query = torch.tensor([[1, 2, MASK, MASK]]), torch.tensor([[2, 3]])
    (logits,) = DENOISER(canvas, torch.ones(1, 4).bool(), query, AllLogits())
    first, second = logits[0].index_fill(1, torch.tensor([MASK]), -float("inf")).softmax(1)
    counts = (tokens[:, 0] * VOCABULARY + tokens[:, 1]).bincount(minlength=VOCABULARY**2)
    probabilities = torch.outer(first, second).flatten()
    common = probabilities * 20_000 >= 5
    pooled = torch.cat([counts[common], counts[~common].sum()[None]])
    assert surprise(pooled, torch.cat([probabilities[common], probabilities[~common].sum()[None]]).detach()) < 4


def test_greedy_takes_the_likeliest_token():
    states, rollout = traced(sampler_of(temperature=0.0), prompts_of(ROWS))
    best = torch.stack([rescored(states, torch.full_like(rollout.tokens_NL, token), 1.0) for token in range(MASK)])
    likeliest = best.argmax(0).gather(0, rollout.revealed_at_NL[None, :, 5:])[0]
    assert torch.equal(rollout.tokens_NL[:, 5:], likeliest)


# ---- records ----


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("rule", SCHEDULED, ids=name_of)
def test_every_step_records_what_the_sampler_saw_and_proposed(rule, temperature):
    states, rollout = traced(sampler_of(rule, temperature), prompts_of(ROWS), EveryStep())
    assert len(rollout.snapshots) == rollout.steps == 4
    for step, snapshot in enumerate(rollout.snapshots):
        assert snapshot.step_N.tolist() == [step] * len(ROWS)
        assert torch.equal(snapshot.canvas_NL, states[step])
        (guess,), masked = snapshot.guesses_ZNL, states[step] == MASK
        assert torch.equal(guess[~masked], states[step][~masked])
        assert not bool((guess == MASK).any())
        committed = masked & (states[step + 1] != MASK)
        assert torch.equal(guess[committed], states[step + 1][committed])
        logp = torch.nn.functional.pad(rescored(states[step : step + 1], guess, temperature or 1.0)[0], (5, 0)) * masked
        torch.testing.assert_close(snapshot.logp_ZNL[0], logp, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(snapshot.confidence_ZNL[0], logp.exp() * masked, atol=1e-5, rtol=1e-5)
    last = rollout.snapshots[-1].guesses_ZNL[0] if not rule.remasks else rollout.tokens_NL
    assert torch.equal(last, rollout.tokens_NL)


@pytest.mark.parametrize("shared", [False, True])
def test_one_step_records_guesses_at_its_state(shared):
    record = OneStep(guesses=3, degree=1.0, shared=shared)
    prompts = prompts_of(ROWS, samples=range(6))
    states, rollout = traced(sampler_of(), prompts, record)
    (snapshot,) = rollout.snapshots
    row = torch.arange(len(rollout.tokens_NL))
    canvas = states[snapshot.step_N, row]
    assert torch.equal(snapshot.canvas_NL, canvas)
    masked = canvas == MASK
    assert torch.equal(snapshot.guesses_ZNL[:, ~masked], canvas[~masked].expand(3, -1))
    assert not bool((snapshot.guesses_ZNL == MASK).any())
    assert len(snapshot.guesses_ZNL.flatten(1).unique(dim=0)) == 3
    query = torch.arange(rollout.tokens_NL.shape[1]).expand_as(canvas)
    reducer = TargetLogProb(snapshot.guesses_ZNL.flatten(1).T)
    with torch.no_grad():
        (logp,) = DENOISER(canvas, rollout.attention_NL, query, reducer)
    expected = logp.permute(2, 0, 1) * masked
    torch.testing.assert_close(snapshot.logp_ZNL, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(snapshot.confidence_ZNL, expected.exp() * masked, atol=1e-5, rtol=1e-5)
    steps = snapshot.step_N.view(len(ROWS), 6)
    assert bool((steps == steps[:, :1]).all()) == shared


def test_recorded_guesses_follow_the_distribution_of_their_state():
    prompts = prompts_of([[1, 2]], samples=range(8000))
    sampler = sampler_of(max_new_tokens=1, block_length=1, steps=1)
    (snapshot,) = sampler(DENOISER, prompts, Uniforms(), OneStep()).snapshots
    first, second = snapshot.guesses_ZNL[:, :, 2]
    (logits,) = DENOISER(
        torch.tensor([[1, 2, MASK]]),
        torch.ones(1, 3).bool(),
        torch.tensor([[2]]),
        AllLogits(),
    )
    probabilities = logits[0, 0].index_fill(0, torch.tensor([MASK]), -float("inf")).softmax(0).detach()
    joint = (first * VOCABULARY + second).bincount(minlength=VOCABULARY**2)
    common = torch.outer(probabilities, probabilities).flatten() * 8000 >= 5
    pooled = torch.cat([joint[common], joint[~common].sum()[None]])
    likely = torch.outer(probabilities, probabilities).flatten()[common]
    assert surprise(pooled, torch.cat([likely, 1 - likely.sum()[None]])) < 4


@pytest.mark.parametrize("degree", [0.0, 1.0, 4.0])
def test_the_recorded_step_follows_its_polynomial(degree):
    samples, masked_NS = torch.arange(20_000), torch.ones(20_000, 8, dtype=torch.bool)
    (steps,) = OneStep(degree=degree).steps(Uniforms(), torch.zeros_like(samples), samples, masked_NS)
    weight = torch.arange(8, dtype=torch.float64) ** degree
    assert surprise(steps.bincount(minlength=8), weight / weight.sum()) < 4
    (only,) = OneStep(degree=degree).steps(Uniforms(), samples, samples, masked_NS[:, :1])
    assert bool((only == 0).all())
    (shared,) = OneStep(degree=degree, shared=True).steps(Uniforms(), samples, samples * 0, masked_NS)
    assert surprise(shared.bincount(minlength=8), weight / weight.sum()) < 4
    (same,) = OneStep(degree=degree, shared=True).steps(Uniforms(), samples * 0, samples, masked_NS)
    assert len(same.unique()) == 1


@pytest.mark.parametrize("degree", [0.0, 4.0])
def test_the_recorded_step_is_one_that_finds_something_masked(degree):
    samples = torch.arange(20_000)
    masked_S = torch.tensor([False, True, True, False, False, True, True, False])
    (steps,) = OneStep(degree=degree).steps(Uniforms(), samples * 0, samples, masked_S.expand(20_000, -1))
    weight = torch.zeros(8, dtype=torch.float64)
    weight[masked_S] = torch.arange(4, dtype=torch.float64) ** degree
    assert surprise(steps.bincount(minlength=8), weight / weight.sum()) < 4
    for masked in ([False, True, False], [False, False, True], [False, False, False]):
        (only,) = OneStep(degree=degree).steps(Uniforms(), samples[:9], samples[:9], torch.tensor([masked] * 9))
        assert only.tolist() == [masked.index(True) if any(masked) else 0] * 9


@pytest.mark.parametrize("record", [EveryStep(), OneStep(), OneStep(guesses=4, shared=True)], ids=repr)
@pytest.mark.parametrize("rule", SCHEDULED, ids=name_of)
def test_recording_does_not_change_the_tokens(rule, record):
    prompts = prompts_of(ROWS, samples=range(2))
    plain, recorded = (sampler_of(rule)(DENOISER, prompts, Uniforms(), request) for request in (None, record))
    assert torch.equal(plain.tokens_NL, recorded.tokens_NL)
    assert torch.equal(plain.revealed_at_NL, recorded.revealed_at_NL)


# ---- guidance and refusals ----


def test_guidance_mixes_logits_and_changes_tokens():
    canvas = torch.tensor([[1, 2, MASK, 3, MASK]])
    query, attention = torch.tensor([[2, 4]]), torch.ones(1, 5).bool()
    prompt = torch.tensor([[True, True, False, False, False]])

    def logits(tokens, guidance=None):
        return DENOISER(tokens, attention, query, AllLogits(), guidance=guidance)[0]

    plain, blank = logits(canvas), logits(canvas.masked_fill(prompt, MASK))
    torch.testing.assert_close(logits(canvas, Guidance(scale=0.0, prompt_FL=prompt)), plain)
    guided = logits(canvas, Guidance(scale=1.5, prompt_FL=prompt))
    torch.testing.assert_close(guided, blank + 2.5 * (plain - blank))
    unguided, scaled = (
        sampler_of(guidance_scale=scale)(DENOISER, prompts_of(ROWS), Uniforms()) for scale in (0.0, 2.0)
    )
    assert torch.equal(unguided.tokens_NL, sampler_of()(DENOISER, prompts_of(ROWS), Uniforms()).tokens_NL)
    assert not torch.equal(unguided.tokens_NL, scaled.tokens_NL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_length": 3}, "block_length 3 does not divide max_new_tokens 8"),
        ({"block_length": 0}, "block_length 0"),
        ({"steps": 5}, "steps 5 is not a multiple of the 2 blocks"),
        ({"steps": 1}, "steps 1 is not a multiple of the 2 blocks"),
        ({"temperature": -0.5}, "temperature -0.5 is negative"),
    ],
)
def test_sampler_refuses_settings_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        sampler_of(**changes)


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (Threshold, {"threshold": 0.0}, "threshold 0.0"),
        (Threshold, {"threshold": 1.5}, "threshold 1.5"),
        (RULES["factor"], {"factor": 0.0}, "factor 0.0"),
        (RunningConfidence, {"confidence": "luck"}, "'luck'"),
        (RunningConfidence, {"statistic": "mean"}, "'mean'"),
        (RunningConfidence, {"scope": "prompt"}, "'prompt'"),
    ],
)
def test_rules_refuse_unknown_settings(rule, settings, message):
    with pytest.raises(UserError, match=message):
        rule(**settings)


def test_sampler_refuses_prompts_longer_than_the_model():
    fits = prompts_of(ROWS, width=32)
    sampler_of()(DENOISER, fits, Uniforms())
    with pytest.raises(UserError, match="prompt of 33 and completion of 8 tokens exceed the 40"):
        sampler_of()(DENOISER, prompts_of(ROWS, width=33), Uniforms())


def test_sampler_refuses_records_of_adaptive_rules():
    with pytest.raises(UserError, match="threshold"):
        sampler_of(Threshold())(DENOISER, prompts_of(ROWS), Uniforms(), EveryStep())


# ---- samples that have ended ----


def ended_rollouts(blocks_of_the_model=None):
    """With and without stopping: several blocks, some samples ending early, ragged prompts."""
    denoiser = small_denoiser(seed=5)
    denoiser.block_length = blocks_of_the_model
    prompts = prompts_of([[1, 2, 3], [4, 5], [1, 6, 2, 7]], samples=range(6))
    sampler = Sampler(max_new_tokens=16, block_length=4, steps=8, temperature=1.0)
    return [replace(sampler, stop_at_end=stop)(denoiser, prompts, Uniforms(), group_size=6) for stop in (False, True)]


@pytest.mark.parametrize("blocks_of_the_model", [None, 4])
def test_stop_at_end_leaves_completions_as_they_are(blocks_of_the_model):
    whole, stopped = ended_rollouts(blocks_of_the_model)
    assert torch.equal(whole.completion_NL, stopped.completion_NL)
    kept = stopped.completion_NL
    end_NL = (whole.tokens_NL == EOS) & (whole.block_NL >= 0)
    ended_in_N1 = torch.where(end_NL, whole.block_NL, 99).amin(1, keepdim=True)
    filled_NL = whole.block_NL > ended_in_N1
    assert 0 < int(filled_NL.any(1).sum()) < len(filled_NL)
    for name in ("tokens_NL", "revealed_at_NL"):
        assert torch.equal(getattr(whole, name)[kept], getattr(stopped, name)[kept])
    torch.testing.assert_close(whole.sampled_logp_NL[kept], stopped.sampled_logp_NL[kept], rtol=1e-4, atol=1e-4)
    assert bool((stopped.tokens_NL[filled_NL] == EOS).all())
    assert not bool((stopped.tokens_NL == MASK).any())
    assert bool((stopped.revealed_at_NL[:, whole.prompt_length :] >= 0).all())
    assert bool((stopped.revealed_at_NL < stopped.steps).all())


def test_stop_at_end_saves_forwards():
    denoiser = small_denoiser(seed=5)
    prompts = prompts_of([[1, 2, 3], [4, 5]], samples=range(6))
    sampler = Sampler(max_new_tokens=16, block_length=4, steps=8, temperature=1.0, stop_at_end=True)
    with count_forwards(denoiser) as shapes:
        rollout = sampler(denoiser, prompts, Uniforms())
    ended = (rollout.tokens_NL[:, 3:].view(-1, 4, 4) == EOS).any(2).long().cumsum(1) > 0  # in this block or before
    going = torch.cat([torch.ones(12, 1), (~ended[:, :-1]).float()], dim=1).sum(0)
    assert [samples for samples, _ in shapes] == [int(count) for count in going for _ in range(2) if count]


def test_stop_at_end_waits_for_every_recorded_step():
    prompts = prompts_of([[1, 2, 3]], samples=range(6))
    sampler = Sampler(max_new_tokens=16, block_length=4, steps=8, temperature=1.0, stop_at_end=True)
    rollout = sampler(small_denoiser(seed=5), prompts, Uniforms(), EveryStep(), group_size=6)
    assert rollout.steps == len(rollout.snapshots) == 8
