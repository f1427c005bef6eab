"""For tests against the authors' numbers: how close is equal, and their stored batches as rollouts and batch."""

import torch

from unmask.objective import advantages
from unmask.objective.masks import through_first_eos
from unmask.types import Rollout, ScoringBatch

MASK, EOS = 255, 254  # of the stored model
GROUPS = (2, 3)  # prompts, and samples of each, in the stored batches


def close(ours, theirs, atol=1e-6, rtol=1e-5):
    theirs = torch.as_tensor(theirs, dtype=torch.float32)
    torch.testing.assert_close(torch.as_tensor(ours), theirs, rtol=rtol, atol=atol, check_dtype=False)


def assert_gradients_equal(loss, denoiser, tensors, expected, temperature=1.0):
    """Ours in float64: slices to 2e-5 of their largest entry (small ones are sums that cancel), the norm of all too.

    The published float32 gradients are that far off: 1.8e-5, at temperature 0.1, where scores multiply the error of
    logits, 7e-5. Ratios far from 1 do the same to the norm.
    """
    within = 2e-5 * max(1.0, 0.4 / temperature)
    named = dict(denoiser.model.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    for ours, theirs in (
        (gradients["lm_head.weight"][:32, :16], tensors["lm_head_grad_slice"]),
        (gradients["model.layers.0.self_attn.q_proj.weight"][:8, :16], tensors["block0_q_proj_grad_slice"]),
    ):
        close(ours, theirs, atol=within * float(theirs.abs().max()))
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    close(norm, expected["global_grad_norm"], rtol=2e-5)


def beside_prompt(numbers, shared):
    """Numbers of completion positions with zeros beside them for the prompt."""
    return torch.nn.functional.pad(numbers, (shared["prompt_ids"].shape[1], 0))


def rollout_of(shared, *, pads_attended, step_map=None, block_length=None) -> Rollout:
    """The stored batch; without a step map all is revealed at once, without a block length there is one block."""
    prompt, completion = shared["prompt_ids"].long(), shared["completion_ids"].long()
    tokens, start = torch.cat([prompt, completion], dim=1), prompt.shape[1]
    region = torch.arange(tokens.shape[1]) >= start
    real = torch.ones_like(prompt) if pads_attended else shared["prompt_mask"]
    block = torch.arange(completion.shape[1]) // (block_length or completion.shape[1])
    step_map = torch.zeros_like(completion) if step_map is None else step_map.long()
    rollout = Rollout.fake(
        tokens,
        prompt_length=start,
        group_size=GROUPS[1],
        mask_id=MASK,
        attention_NL=torch.nn.functional.pad(real.bool(), (0, completion.shape[1]), value=True),
        completion_NL=through_first_eos(tokens, region, EOS),
        block_NL=torch.nn.functional.pad(block, (start, 0), value=-1).expand_as(tokens),
        revealed_at_NL=torch.nn.functional.pad(step_map, (start, 0), value=-1),
    )
    assert torch.equal(rollout.completion_NL, beside_prompt(shared["completion_mask"].bool(), shared))
    return rollout


def d1_views(case) -> ScoringBatch:
    """The stored masked inputs, as d1's code and its descendant wd1 feed them: pads are attended to."""
    tensors, shared = case["tensors"], case["shared"]
    inputs = tensors["masked_input_ids"].long()
    row = torch.arange(len(inputs))
    scored = beside_prompt(shared["completion_mask"].bool(), shared)
    return ScoringBatch(
        inputs_FL=inputs,
        attention_FL=torch.ones_like(inputs).bool(),
        forward_R=row,
        targets_RL=torch.cat([shared["prompt_ids"], shared["completion_ids"]], dim=1).long(),
        scored_RL=scored,
        token_weight_RL=scored.float(),
        unit_R=row,
        length_U=scored.sum(1),
        advantage_U=advantages.centered(shared["rewards"].view(GROUPS)).flatten(),
    )
