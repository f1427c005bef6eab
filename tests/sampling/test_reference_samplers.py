"""Token-for-token equality with the authors' own samplers, at temperature 0."""

import json

import pytest
import torch

from conftest import REFERENCE, reference_cases
from unmask.sampling import Sampler
from unmask.types import Prompts
from unmask.uniforms import Uniforms
from unmask.unmasking import (
    SCHEDULES,
    Entropy,
    Factor,
    LowConfidence,
    RunningConfidence,
    Threshold,
    TopKMargin,
)


def prompts_of(tokens, attention=None) -> Prompts:
    tokens = tokens.long()
    attention = torch.ones_like(tokens) if attention is None else attention
    count = torch.arange(len(tokens))
    return Prompts(tokens_NP=tokens, attention_NP=attention.bool(), prompt_N=count, sample_N=torch.zeros_like(count))


def states_of(sampler: Sampler, denoiser, prompts: Prompts):
    """The canvas before each step, and the rollout."""
    after = []
    rollout = sampler(denoiser, prompts, Uniforms(), watch=lambda step, canvas: after.append(canvas.clone()))
    blank = torch.nn.functional.pad(prompts.tokens_NP, (0, sampler.max_new_tokens), value=denoiser.mask_id)
    return torch.stack([blank, *after[:-1]]), rollout


@pytest.mark.parametrize("case", reference_cases("samplers/llada_generate"), ids=lambda case: case["name"])
def test_llada_generate(case, llada_tiny):
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
def test_fast_dllm(case, llada_tiny):
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
def test_running_confidence_remasking(case, llada_tiny):
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


SCHEDULE_NAMES = {"linear": "linear", "cosine": "cosine", "pow2": "square"}


def test_schedules():
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
