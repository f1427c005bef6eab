"""Continuous batching: samples that are done make room for others; tokens, records and log-probs stay the same."""

import pytest
import torch

from helpers.forwards import count_forwards
from helpers.long import long_unless
from helpers.small import EOS, MASK, prompts_of, small_denoiser
from helpers.stable_rule import Stable, StableFirst
from unmask.objective.masks import EqualSegments
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import RULES, LowConfidence, Threshold
from unmask.uniforms import Uniforms

ROWS = [[1, 2, 3], [4, 5], [6, 7, 1, 2, 3], [2]]
NAMES = ("tokens_NL", "revealed_at_NL", "completion_NL", "block_NL")


def denoiser_of(block_length=None):
    denoiser = small_denoiser(seed=5)
    denoiser.block_length = block_length
    return denoiser


def rollout_of(denoiser, *, record=None, on_finished=None, **changes):
    settings = {"max_new_tokens": 16, "block_length": 4, "steps": 8, "temperature": 1.0, "stop_at_end": True}
    prompts = prompts_of(ROWS, samples=range(3))
    return Sampler(**(settings | changes))(denoiser, prompts, Uniforms(), record, group_size=3, on_finished=on_finished)


def assert_same(ours, theirs):
    for name in NAMES:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("sampled_logp_NL", "confidence_NL"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)
    assert (ours.steps, ours.exact) == (theirs.steps, theirs.exact)


@pytest.mark.parametrize("batch", long_unless({3}, [1, 3, 5]))
@pytest.mark.parametrize("blocks_of_the_model", [None, 4])
@pytest.mark.parametrize(
    "rule", [*(rule() for rule in RULES.values()), Stable(), StableFirst()], ids=lambda rule: rule.name
)
def test_batch_size_changes_no_rollout(rule, blocks_of_the_model, batch):
    denoiser = denoiser_of(blocks_of_the_model)
    whole = rollout_of(denoiser, unmasking=rule)
    assert_same(rollout_of(denoiser, unmasking=rule, batch=batch), whole)
    ended_in_NL = torch.where((whole.tokens_NL == EOS) & (whole.block_NL >= 0), whole.block_NL, 99)
    assert len(ended_in_NL.amin(1).unique()) > 1  # they end in different blocks


@pytest.mark.parametrize("record", [EveryStep(), OneStep(guesses=3, degree=0.0)], ids=["every", "one"])
@pytest.mark.parametrize("batch", [2, 3, 6])
def test_batch_size_changes_no_record(record, batch):
    denoiser = denoiser_of()
    whole, few = rollout_of(denoiser, record=record), rollout_of(denoiser, record=record, batch=batch)
    assert_same(few, whole)
    for ours, theirs in zip(few.snapshots, whole.snapshots, strict=True):
        for name in ("canvas_NL", "guesses_ZNL", "step_N"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        torch.testing.assert_close(ours.logp_ZNL, theirs.logp_ZNL, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks_of_the_model", [None, 4])
@pytest.mark.parametrize("rule", [LowConfidence(), Threshold(threshold=0.2)], ids=lambda rule: rule.name)
def test_equal_segments_of_a_sample_do_not_depend_on_the_others(rule, blocks_of_the_model):
    """However many steps these take, and wherever their prompts end in a block."""
    denoiser = denoiser_of(blocks_of_the_model)
    whole = rollout_of(denoiser, unmasking=rule)
    sampler = Sampler(max_new_tokens=16, block_length=4, steps=8, temperature=1.0, stop_at_end=True, unmasking=rule)
    segment_NL, count = EqualSegments(count=5)(whole)
    for index, row in enumerate(ROWS):
        alone = sampler(denoiser, prompts_of([row], samples=range(3)), Uniforms(), group_size=3)
        segments, counted = EqualSegments(count=5)(alone)
        assert counted == count == 5
        assert torch.equal(alone.steps_N, whole.steps_N[3 * index : 3 * index + 3])
        assert torch.equal(segments[:, -16:], segment_NL[3 * index : 3 * index + 3, -16:])
    assert rule.adaptive == (len(whole.steps_N.unique()) > 1)


def forwards(denoiser, **changes):
    """Samples in each forward."""
    with count_forwards(denoiser) as shapes:
        rollout_of(denoiser, **changes)
    return [samples for samples, _ in shapes]


def test_batching_admits_waiting_samples_in_free_places():
    denoiser = denoiser_of()
    counts = forwards(denoiser, batch=4)
    busy = counts[: -2 * 4]  # until the waiting ones have run out
    assert set(busy) == {4}
    assert sum(counts) == sum(forwards(denoiser)) + 2 * 4  # no group is whole, and begins in one forward


def test_first_step_of_a_group_is_one_forward_a_prompt():
    denoiser = denoiser_of()
    assert forwards(denoiser, stop_at_end=False) == [4, *[12] * 7]
    assert forwards(denoiser, stop_at_end=False, batch=6) == [2, *[6] * 7] * 2
    assert forwards(denoiser, stop_at_end=False, batch=4) == [*[4] * 8] * 3


def test_batch_sizes_are_multiples_of_a_sixteenth():
    """Where many are at work, a few are carried along rather than another shape compiled."""
    denoiser, prompts = denoiser_of(), prompts_of(ROWS, samples=range(16))
    sampler = Sampler(max_new_tokens=16, block_length=4, steps=8, temperature=1.0, stop_at_end=True)
    with count_forwards(denoiser) as shapes:
        rollout = sampler(denoiser, prompts, Uniforms())
    counts = [samples for samples, _ in shapes]
    assert len(set(counts)) > 2
    assert all(count % 4 == 0 for count in counts)  # 64 / 16
    alone = sampler(denoiser, prompts_of(ROWS[:1], samples=range(16), width=5), Uniforms())
    assert torch.equal(alone.tokens_NL, rollout.tokens_NL[:16])


@pytest.mark.parametrize("batch", [0, 4])
def test_on_finished_is_given_each_completion_once(batch):
    finished = {}

    def on_finished(rows, completions_NEC):
        assert completions_NEC.shape == (len(rows), 1, 16)
        assert not set(rows) & set(finished)
        finished.update(zip(rows, completions_NEC[:, 0].tolist(), strict=True))

    rollout = rollout_of(denoiser_of(), batch=batch, on_finished=on_finished)
    assert [finished[row] for row in range(12)] == rollout.tokens_NL[:, 5:].tolist()
    assert not any(MASK in row for row in finished.values())


def test_on_finished_is_given_recorded_guesses():
    guesses = {}

    def on_finished(rows, completions_NEC):
        if completions_NEC.shape[1] == 2:
            guesses.update(zip(rows, completions_NEC.tolist(), strict=True))

    rollout = rollout_of(denoiser_of(), record=OneStep(degree=0.0), on_finished=on_finished)
    (state,) = rollout.snapshots
    assert [guesses[row] for row in range(12)] == state.guesses_ZNL[..., 5:].transpose(0, 1).tolist()


# ---- further tokens that end a completion ----


@pytest.mark.parametrize("batch", [0, 5])
def test_other_end_tokens_end_a_sample_as_the_end_of_sequence_does(batch):
    """The token that ends them is another one, and the rest is filled up with the end of sequence all the same."""
    other = 4
    denoiser = denoiser_of()
    plain = rollout_of(denoiser, batch=batch, stop_at_end=False)
    denoiser.other_end_ids = (other,)
    whole, ended = rollout_of(denoiser, batch=batch, stop_at_end=False), rollout_of(denoiser, batch=batch)
    assert torch.equal(whole.tokens_NL, plain.tokens_NL)  # where nothing stops, ends decide no token
    completion_NC = whole.tokens_NL[:, -16:]
    end_NC = (completion_NC == EOS) | (completion_NC == other)
    first_N = torch.where(end_NC.any(1), end_NC.long().argmax(1), 15)
    assert torch.equal(whole.completion_NL[:, -16:], torch.arange(16) <= first_N[:, None])
    assert bool((completion_NC.gather(1, first_N[:, None]) == other).any())
    stop_N = (first_N // 4 + 1) * 4  # the block's end
    drawn_NC = torch.arange(16) < stop_N[:, None]
    assert torch.equal(ended.tokens_NL[:, -16:], torch.where(drawn_NC, completion_NC, EOS))
    assert torch.equal(ended.completion_NL, whole.completion_NL)
    assert torch.equal(ended.filled_NL[:, -16:], ~drawn_NC)
