"""The fast sampler against its specification: the same tokens and steps, log-probs and confidences up to rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.long import long_unless
from helpers.rules import RCR, SCHEDULED
from helpers.small import MASK, prompts_of, small_denoiser
from helpers.stable_rule import StableFirst
from unmask.denoisers.base import Guidance
from unmask.denoisers.head.reducers import AllLogits
from unmask.sampling import reference
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedules import SCHEDULES
from unmask.uniforms import Uniforms

ROWS = [[1, 2, 3], [4, 5], [6, 7, 1, 2, 3]]
DENOISERS = {False: small_denoiser(seed=5), True: small_denoiser(seed=5)}
DENOISERS[True].shift = True


def logits_of(denoiser, prompts, guidance_scale):
    """All logits [N, L, V] of canvases, in one forward."""
    start = prompts.tokens_NP.shape[1]

    def logits(tokens_NL):
        samples, columns = tokens_NL.shape
        attention_NL = torch.nn.functional.pad(prompts.attention_NP, (0, columns - start), value=True)
        column_L = torch.arange(columns)
        guidance = None
        if guidance_scale:
            guidance = Guidance(scale=guidance_scale, prompt_FL=(column_L < start).expand(samples, -1))
        return denoiser(tokens_NL, attention_NL, column_L.expand(samples, -1), AllLogits(), guidance=guidance)[0]

    return logits


def assert_equals_reference(denoiser, prompts, *, guidance_scale=0.0, record=None, batch=0, **options):
    rollout = Sampler(**options, guidance_scale=guidance_scale, batch=batch)(
        denoiser, prompts, Uniforms(), record, group_size=2
    )
    plain = reference.sample(logits_of(denoiser, prompts, guidance_scale), prompts, Uniforms(), mask_id=MASK, **options)
    start = rollout.prompt_length
    assert torch.equal(rollout.tokens_NL[:, start:], plain.token_NC)
    assert torch.equal(rollout.revealed_at_NL[:, start:], plain.revealed_at_NC)
    torch.testing.assert_close(rollout.sampled_logp_NL[:, start:], plain.logp_NC, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rollout.confidence_NL[:, start:], plain.confidence_NC, atol=1e-4, rtol=1e-4)


ALL_RULES = [*SCHEDULED, *RCR, StableFirst()]


@pytest.mark.parametrize("rule", long_unless(ALL_RULES[::2], ALL_RULES), ids=str)
@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    block_length=st.sampled_from([4, 6, 12]),
    steps=st.sampled_from([6, 12, 18]),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    shift=st.booleans(),
    guidance_scale=st.sampled_from([0.0, 1.5]),
    record=st.sampled_from([None, EveryStep(), OneStep(degree=0.0)]),
    batch=st.sampled_from([0, 4]),
)
def test_sampler_equals_reference(rule, steps, schedule, shift, **options):
    assert_equals_reference(
        DENOISERS[shift],
        prompts_of(ROWS, samples=range(2)),
        max_new_tokens=12,
        steps=steps,
        schedule=SCHEDULES[schedule],
        unmasking=rule,
        **options,
    )


def test_reference_draw_takes_the_token_at_the_uniform_and_never_the_mask():
    logits = torch.tensor([[0.5, 0.25, 9.0, 0.25]]).log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76], dtype=torch.float64)
    assert reference.draw(logits, uniform, 1.0, mask_id=2).tolist() == [0, 0, 1, 1, 3]
    sharper = reference.draw(logits, uniform, 0.5, mask_id=2)  # 4 : 1 : 1
    assert sharper.tolist() == [0, 0, 0, 1, 1]
