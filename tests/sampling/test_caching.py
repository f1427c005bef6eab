"""Cached rollouts: which columns are run, where that is exact, and that the mismatch it costs is measured."""

import pytest
import torch

from helpers.forwards import count_forwards
from helpers.small import EOS, MASK, VOCABULARY, prompts_of, small_denoiser
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.tiny import tiny_denoiser
from unmask.distributed import World
from unmask.errors import UserError
from unmask.sampling.caching import CACHINGS
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import LowConfidence, RunningConfidence, Threshold
from unmask.training.mismatch import sampling_mismatch, step_logps
from unmask.uniforms import Uniforms

ROWS = [[1, 2, 3], [4, 5], [6, 7, 1, 2, 3]]
CACHED = {name: caching for name, caching in CACHINGS.items() if caching is not None}


def one_layer(shift=False):
    """Its keys and values depend on nothing but the token there, so all that does not change may be kept."""
    denoiser = tiny_denoiser(
        vocabulary=VOCABULARY, mask_id=MASK, eos_id=EOS, hidden=16, layers=1, heads=2, max_length=40, seed=0
    )
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    denoiser.shift = shift
    return denoiser.eval()


def sampler_of(caching=None, **changes):
    settings = {"max_new_tokens": 12, "block_length": 4, "steps": 6, "temperature": 1.0, "stop_at_end": True}
    return Sampler(caching=caching, **(settings | changes))


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("rule", [LowConfidence(), Threshold(threshold=0.5)], ids=lambda rule: rule.name)
@pytest.mark.parametrize("caching", CACHED.values(), ids=CACHED)
def test_caching_is_exact_for_one_layer(caching, rule, shift, batch):
    denoiser, prompts = one_layer(shift), prompts_of(ROWS, samples=range(2))
    exact = sampler_of(unmasking=rule)(denoiser, prompts, Uniforms(), group_size=2)
    cached = sampler_of(caching, unmasking=rule, batch=batch)(denoiser, prompts, Uniforms(), group_size=2)
    for name in ("tokens_NL", "revealed_at_NL"):
        assert torch.equal(getattr(exact, name), getattr(cached, name))
    torch.testing.assert_close(exact.sampled_logp_NL, cached.sampled_logp_NL, rtol=1e-4, atol=1e-4)
    assert exact.temperature == cached.temperature
    assert not cached.exact


def columns_run(denoiser, sampler, prompts):
    """Number of columns of each forward."""
    with count_forwards(denoiser) as shapes:
        sampler(denoiser, prompts, Uniforms())
    return [columns for _, columns in shapes]


def test_cached_forwards_run_few_columns():
    """5 of the prompt and 12, in blocks of 4, two steps a block revealing 2 each."""
    expected = {
        "prefix": [17, 12, 17, 8, 17, 4],
        "dual": [17, 4] * 3,
        "prefix_delayed": [17, 2 + 2 + 8, 17, 2 + 2 + 4, 17, 4],
        "dual_delayed": [17, 2 + 2] * 3,
    }
    denoiser = small_denoiser()
    for name, caching in CACHED.items():
        sampler = sampler_of(caching, stop_at_end=False)
        assert columns_run(denoiser, sampler, prompts_of(ROWS)) == expected[name], name
    slow = sampler_of(CACHED["dual_delayed"], stop_at_end=False, steps=12)
    assert columns_run(denoiser, slow, prompts_of(ROWS)) == [17, 3 + 1, 2 + 1, 1 + 1] * 3


def test_sampling_mismatch_shows_that_caching_approximates():
    denoiser, prompts = small_denoiser(), prompts_of(ROWS, samples=range(8))
    mismatches = {}
    for name, caching in CACHINGS.items():
        rollout = sampler_of(caching, stop_at_end=False)(denoiser, prompts, Uniforms(), group_size=8)
        mismatches[name] = sampling_mismatch(denoiser, rollout, Uniforms(), World.single())["sampling/logp_gap"]
    assert mismatches.pop("none") < 1e-4
    assert all(mismatch > 1e-3 for mismatch in mismatches.values())


def test_step_logps_equal_sampled_logps():
    """All steps together: every token, once."""
    denoiser, prompts = small_denoiser(), prompts_of(ROWS, samples=range(2))
    rollout = sampler_of(stop_at_end=False)(denoiser, prompts, Uniforms(), group_size=2)
    counted = torch.zeros_like(rollout.tokens_NL)
    for step in range(rollout.steps):
        sampled, scored, where = step_logps(denoiser, rollout, torch.full((6,), step))
        torch.testing.assert_close(sampled, scored, rtol=1e-4, atol=1e-4)
        counted += where
    assert torch.equal(counted, rollout.completion_NL.long())


def test_recorded_guesses_are_exact_under_caching():
    """DiSPO's states have a forward of their own; MDPO's are the cached forwards themselves, and refused."""
    denoiser, prompts = small_denoiser(), prompts_of(ROWS, samples=range(4))
    rollout = sampler_of(CACHED["dual"])(denoiser, prompts, Uniforms(), OneStep(degree=0.0), group_size=4)
    (state,) = rollout.snapshots
    canvas = torch.where(rollout.revealed_at_NL >= state.step_N[:, None], MASK, rollout.tokens_NL)
    assert torch.equal(state.canvas_NL[:, 5:], canvas[:, 5:])
    where = (canvas == MASK)[:, 5:]
    (logits,) = denoiser(canvas, rollout.attention_NL, torch.arange(5, 17).expand(12, -1), AllLogits())
    for guess in range(2):
        tokens = state.guesses_ZNL[guess, :, 5:, None]
        expected = logits.log_softmax(2).gather(2, tokens)[..., 0]
        torch.testing.assert_close(state.logp_ZNL[guess, :, 5:][where], expected[where], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="caching dual leaves out what the method records"):
        sampler_of(CACHED["dual"])(denoiser, prompts, Uniforms(), EveryStep())


@pytest.mark.parametrize(("length", "steps"), [(4, 4), (12, 12), (12, 18)])
@pytest.mark.parametrize("caching", CACHINGS.values(), ids=CACHINGS)
def test_recording_changes_no_token_under_caching(caching, length, steps):
    """In the last block, too, where a state's masked positions are those of the block; and where steps reveal none."""
    denoiser, prompts = small_denoiser(), prompts_of(ROWS, samples=range(4))
    sampler = sampler_of(caching, stop_at_end=False, max_new_tokens=length, steps=steps)
    whole = sampler(denoiser, prompts, Uniforms(), group_size=4)
    for degree in (0.0, 1.0, 9.0):
        recorded = sampler(denoiser, prompts, Uniforms(), OneStep(degree=degree), group_size=4)
        assert torch.equal(recorded.tokens_NL, whole.tokens_NL)
        torch.testing.assert_close(recorded.sampled_logp_NL, whole.sampled_logp_NL, rtol=1e-4, atol=1e-4)
        (state,) = recorded.snapshots
        canvas = torch.where(whole.revealed_at_NL >= state.step_N[:, None], MASK, whole.tokens_NL)
        assert torch.equal(state.canvas_NL[:, 5:], canvas[:, 5:])
        assert not bool((state.guesses_ZNL == MASK).any())


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("rule", [LowConfidence(), Threshold(threshold=0.2)], ids=lambda rule: rule.name)
@pytest.mark.parametrize("caching", CACHED.values(), ids=CACHED)
def test_cached_samples_do_not_depend_on_neighbours(caching, rule, shift):
    """Each sample alone, all together, and a few at a time, on blocks of their own."""
    denoiser = small_denoiser()
    denoiser.shift = shift
    prompts = prompts_of(ROWS, samples=range(4))
    together = sampler_of(caching, unmasking=rule)(denoiser, prompts, Uniforms(), group_size=4)
    by_twos = sampler_of(caching, unmasking=rule, batch=2)(denoiser, prompts, Uniforms(), group_size=4)
    for name in ("tokens_NL", "revealed_at_NL"):
        assert torch.equal(getattr(together, name), getattr(by_twos, name)), name
    for index, row in enumerate(ROWS):
        for sample in range(4):
            alone = sampler_of(caching, unmasking=rule)(denoiser, prompts_of([row], samples=[sample]), Uniforms())
            assert torch.equal(alone.tokens_NL[0, -12:], together.tokens_NL[4 * index + sample, -12:])


def test_sampler_refuses_caching_where_it_cannot_hold():
    with pytest.raises(UserError, match="caching prefix has no guidance: set guidance_scale 0"):
        sampler_of(CACHED["prefix"], guidance_scale=1.0)
    with pytest.raises(UserError, match="caching dual keeps tokens that unmasking rcr may mask again"):
        sampler_of(CACHED["dual"], unmasking=RunningConfidence())
    denoiser = small_denoiser()
    denoiser.block_length = 4
    with pytest.raises(UserError, match="this model attends in blocks: its keys and values are kept exactly"):
        sampler_of(CACHED["dual"])(denoiser, prompts_of(ROWS), Uniforms())
