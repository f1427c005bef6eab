"""Token-for-token equality with the authors' own samplers, at temperature 0."""

import json

import pytest
import torch

from conftest import REFERENCE, reference_cases
from helpers.forwards import count_forwards
from unmask.denoisers.loading import load_denoiser
from unmask.errors import UserError
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedules import SCHEDULES
from unmask.sampling.unmasking import (
    Entropy,
    Factor,
    LowConfidence,
    RunningConfidence,
    ScheduledThreshold,
    Threshold,
    TopKMargin,
)
from unmask.types import Prompts
from unmask.uniforms import Uniforms


def prompts_of(tokens, attention=None) -> Prompts:
    tokens = tokens.long()
    attention = torch.ones_like(tokens) if attention is None else attention
    count = torch.arange(len(tokens))
    return Prompts(tokens_NP=tokens, attention_NP=attention.bool(), prompt_N=count, sample_N=torch.zeros_like(count))


def states_of(sampler: Sampler, denoiser, prompts: Prompts):
    """The canvas before each step, and the rollout."""
    after = []
    rollout = sampler(denoiser, prompts, Uniforms(), watch=lambda canvas: after.append(canvas.clone()))
    blank = torch.nn.functional.pad(prompts.tokens_NP, (0, sampler.max_new_tokens), value=denoiser.mask_id)
    return torch.stack([blank, *after[:-1]]), rollout


@pytest.mark.parametrize("case", reference_cases("samplers/llada_generate"), ids=lambda case: case["name"])
def test_sampler_equals_llada_generate(case, llada_tiny):
    tensors = case["tensors"]
    sampler = Sampler(
        max_new_tokens=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        guidance_scale=case["cfg_scale"],
    )
    states, rollout = states_of(sampler, llada_tiny, prompts_of(tensors["prompt"], tensors.get("attention_mask")))
    assert torch.equal(states, tensors["states"].long())
    assert torch.equal(rollout.tokens_NL, tensors["final"].long())


def fast_dllm_rule(case):
    if case["threshold"] is not None:
        return Threshold(threshold=case["threshold"])
    return Factor(factor=case["factor"]) if case["factor"] is not None else LowConfidence()


@pytest.mark.parametrize("case", reference_cases("samplers/fast_dllm"), ids=lambda case: case["name"])
def test_sampler_equals_fast_dllm(case, llada_tiny):
    tensors = case["tensors"]
    sampler = Sampler(
        max_new_tokens=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        unmasking=fast_dllm_rule(case),
    )
    if "prompt" in tensors:
        states, rollout = states_of(sampler, llada_tiny, prompts_of(tensors["prompt"]))
        assert torch.equal(states, tensors["states"].long())
        assert torch.equal(rollout.tokens_NL, tensors["final"].long())
        return
    rows = [tensors["prompt_0"].long(), tensors["prompt_1"].long()]  # ragged: ours are left-padded
    width = max(map(len, rows))
    padded = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=254) for row in rows])
    attention = torch.stack([torch.arange(width) >= width - len(row) for row in rows])
    _, rollout = states_of(sampler, llada_tiny, prompts_of(padded, attention))
    for index, row in enumerate(rows):
        expected = tensors["final"][index, len(row) : len(row) + case["gen_length"]].long()
        assert torch.equal(rollout.tokens_NL[index, width:], expected)


MEASURE_NAMES = {"llada": "probability", "topk_margin": "margin", "entropy": "entropy"}
PLAIN_RULES = {"llada": LowConfidence(), "topk_margin": TopKMargin(), "entropy": Entropy()}


@pytest.mark.parametrize("case", reference_cases("samplers/rcr_llada"), ids=lambda case: case["name"])
def test_sampler_equals_mdpo_running_confidence_remasking(case, llada_tiny):
    tensors = case["tensors"]
    rule = PLAIN_RULES[case["conf_alg"]]
    if case["rcr"]:
        rule = RunningConfidence(confidence=MEASURE_NAMES[case["conf_alg"]], scope="completion")
    sampler = Sampler(
        max_new_tokens=case["gen_length"],
        block_length=case["block_length"],
        steps=case["steps"],
        unmasking=rule,
        schedule=SCHEDULES[case["mode"]],
    )
    states, rollout = states_of(sampler, llada_tiny, prompts_of(tensors["prompt"], tensors.get("attention_mask")))
    start = rollout.prompt_length
    assert torch.equal(states[:, 0, start:], tensors["intermediate_inputs"].long())
    assert torch.equal(rollout.tokens_NL[0, start:], tensors["final"].long())


DREAM_RULES = {"maskgit_plus": LowConfidence(), "topk_margin": TopKMargin(), "entropy": Entropy()}


@pytest.fixture(scope="module")
def dream_tiny():
    return load_denoiser(str(REFERENCE / "models" / "dream-tiny")).eval()


@pytest.mark.parametrize("case", reference_cases("samplers/dream_generate"), ids=lambda case: case["name"])
def test_sampler_equals_dream_generate(case, dream_tiny):
    tensors = case["tensors"]
    sampler = Sampler(
        max_new_tokens=case["max_new_tokens"],
        block_length=case["max_new_tokens"],
        steps=case["steps"],
        unmasking=DREAM_RULES[case["alg"]],
        schedule=SCHEDULES["dream"],
    )
    states, rollout = states_of(sampler, dream_tiny, prompts_of(tensors["prompt"], tensors.get("attention_mask")))
    assert torch.equal(states[1:], tensors["history"][:-1].long())
    assert torch.equal(rollout.tokens_NL, tensors["final"].long())


@pytest.fixture(scope="module")
def llada2_tiny():
    denoiser = load_denoiser(str(REFERENCE / "models" / "llada2-moe-tiny"), mask_token_id=159).eval()
    assert denoiser.block_length == 32  # as published
    denoiser.block_length = 8
    return denoiser


def llada2_sampler(case) -> Sampler:
    """Whole blocks, as theirs, and one more, which the earlier ones do not see."""
    length = case["block_length"] * (case["gen_length"] // case["block_length"] + 2)
    return Sampler(
        max_new_tokens=length,
        block_length=case["block_length"],
        steps=case["steps"] * (length // case["block_length"]),
        unmasking=ScheduledThreshold(threshold=case["threshold"]),
    )


@pytest.mark.parametrize("case", reference_cases("samplers/llada2_generate"), ids=lambda case: case["name"])
def test_sampler_equals_llada2_generate(case, llada2_tiny):
    tensors = case["tensors"]
    states, rollout = states_of(llada2_sampler(case), llada2_tiny, prompts_of(tensors["prompt"]))
    for ours, theirs in zip(states[:, 0], tensors["states"].long(), strict=False):
        window = theirs[theirs >= 0]
        assert torch.equal(ours[: len(window)], window)
    assert len(states) >= case["n_forward"]
    generated = tensors["generated"][0].long()
    assert torch.equal(rollout.tokens_NL[0, case["prompt_length"] :][: len(generated)], generated)


def test_block_causal_samples_do_not_depend_on_the_batch(llada2_tiny):
    """Prompts that end in different places of a block, side by side and left-padded, give what each gives alone."""
    cases = reference_cases("samplers/llada2_generate")
    rows = [case["tensors"]["prompt"][0].long() for case in cases]
    sampler, width = llada2_sampler(cases[0]), max(map(len, rows))
    padded = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=157) for row in rows])
    attention = torch.stack([torch.arange(width) >= width - len(row) for row in rows])
    _, together = states_of(sampler, llada2_tiny, prompts_of(padded, attention))
    for index, row in enumerate(rows):
        _, alone = states_of(sampler, llada2_tiny, prompts_of(row[None]))
        assert torch.equal(together.tokens_NL[index, width:], alone.tokens_NL[0, len(row) :])
        assert torch.equal(together.block_NL[index, width:], alone.block_NL[0, len(row) :])
        first = (len(row) + torch.arange(sampler.max_new_tokens)) // 8 - len(row) // 8
        assert torch.equal(alone.block_NL[0, len(row) :], first)


@pytest.mark.parametrize("record", [None, OneStep(degree=0.0), OneStep(degree=4.0), EveryStep()], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_exact_prefix_cache_changes_nothing(llada2_tiny, monkeypatch, temperature, record):
    """Ragged prompts: the same tokens as with every column run at every step, and the same log-probs."""
    rows = [torch.arange(3, 3 + length) for length in (2, 9, 16, 23)]
    width = max(map(len, rows))
    padded = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=157) for row in rows])
    attention = torch.stack([torch.arange(width) >= width - len(row) for row in rows])
    sampler = Sampler(max_new_tokens=32, block_length=8, steps=16, temperature=temperature)
    prompts = prompts_of(padded, attention)
    with count_forwards(llada2_tiny) as shapes:
        cached = sampler(llada2_tiny, prompts, Uniforms(), record)
    if record is None:
        assert sum(columns for _, columns in shapes) < 0.6 * len(shapes) * (width + 32)
    monkeypatch.setattr("unmask.sampling.context.SamplingContext.exact_prefix_cache", property(lambda context: False))
    plain = sampler(llada2_tiny, prompts, Uniforms())
    assert torch.equal(cached.tokens_NL, plain.tokens_NL)
    torch.testing.assert_close(cached.sampled_logp_NL, plain.sampled_logp_NL, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degree", [0.0, 4.0])
def test_recorded_states_have_masks_wherever_a_prompt_ends_in_a_block(llada2_tiny, degree):
    width, samples = 24, 16
    attention = torch.arange(width) >= torch.arange(samples)[:, None]  # prompts of 9 to 24 tokens, blocks of 8
    prompts = prompts_of(torch.full((samples, width), 5), attention)
    sampler = Sampler(max_new_tokens=16, block_length=8, steps=8, temperature=1.0)
    (snapshot,) = sampler(llada2_tiny, prompts, Uniforms(), OneStep(degree=degree)).snapshots
    assert bool((snapshot.canvas_NL == llada2_tiny.mask_id).any(1).all())


def test_sampler_refuses_other_blocks_than_the_models(llada2_tiny):
    sampler = Sampler(max_new_tokens=16, block_length=16, steps=16)
    with pytest.raises(UserError, match="block_length 16 is not the 8 of the model"):
        states_of(sampler, llada2_tiny, prompts_of(torch.ones(1, 3)))


SCHEDULE_NAMES = {"linear": "linear", "cosine": "cosine", "pow2": "square"}


def test_schedules_equal_the_authors():
    tables = json.loads((REFERENCE / "samplers" / "schedules.json").read_text())
    compared = 0
    for row in tables["uniform"]:
        assert list(SCHEDULES["uniform"](row["mask_num"], row["steps"])) == row["num_transfer_tokens"]
    for row in tables["maskgit"]:
        if row["mode"] in SCHEDULE_NAMES:
            schedule = SCHEDULES[SCHEDULE_NAMES[row["mode"]]]
            assert list(schedule(row["mask_num"], row["steps"])) == row["num_transfer_tokens"]
            compared += 1
    assert compared == 24
