"""The authors' own training code gives the same log-probs, advantages, losses and gradients (1e-5)."""

from dataclasses import replace

import pytest
import torch

from conftest import reference_cases
from helpers.reference_tools import EOS, MASK, assert_gradients_equal, beside_prompt, close, d1_views
from unmask.methods import MDPO, DiffuGRPO
from unmask.objective import advantages
from unmask.objective.likelihood import row_logp, token_count, unit_count
from unmask.types import Rollout, Snapshot
from unmask.uniforms import Uniforms

# ---- diffu-GRPO ----


@pytest.mark.parametrize("case", reference_cases("methods/diffu_grpo"), ids=lambda case: case["name"])
def test_diffu_grpo_loss_and_gradients_equal_the_authors(case, exact_llada_tiny):
    tensors, shared = case["tensors"], case["shared"]
    (term,) = DiffuGRPO(beta=case["beta"], epsilon=case["epsilon"]).terms(EOS)
    batch = d1_views(case)
    close(batch.advantage_U, shared["advantages"])
    now = row_logp(exact_llada_tiny, batch)

    def stored(name):
        return beside_prompt(tensors[name], shared) * batch.scored_RL

    close(now.detach(), stored("per_token_logps"), atol=2e-5)  # log-probs near -10 from logits near 10, in float32
    old = stored("old_per_token_logps") if "old_per_token_logps" in tensors else now.detach()
    reference = stored("ref_per_token_logps") if "ref_per_token_logps" in tensors else None
    loss, sums = term.loss(batch, now, old, reference, token_count(batch))
    close(loss.detach(), case["loss"])
    if reference is not None:
        close(sums["kl"] / sums["count"], case["kl"])
    # TRL's clip_ratio counts the tokens outside the range whose gradient is *not* cut off; ours the others.
    outside = ((now - old).exp() - 1).abs() > case["epsilon"]
    with_advantage = (outside & batch.scored_RL & (batch.advantage_U != 0)[:, None]).sum()
    close((with_advantage - sums["clip_ratio"]) / sums["count"], case["clip_ratio"])
    assert_gradients_equal(loss, exact_llada_tiny, tensors, case)


# ---- MDPO ----

MDPO_CASES = reference_cases("methods/mdpo")
TRAINED = [case for case in MDPO_CASES if "micro_batches" in case]


def normalized(score):
    return advantages.z_score(score[None])[0]


@pytest.mark.parametrize("case", MDPO_CASES, ids=lambda case: case["name"])
def test_mdpo_advantages_equal_the_authors(case):
    tensors = case["tensors"]
    raw = advantages.difference_and_future(tensors["rewards"][None])[0]
    # The published 1 + (difference) + (mean) shifts a column, which its normalisation removes.
    shift = tensors["raw_step_advantages"] - raw
    close(shift, shift[:1].expand_as(shift))
    ours, theirs = normalized(raw), tensors["advantages"]
    flat = raw.std(0) < 1e-6  # both are rounding noise there
    close(ours[:, ~flat], theirs[:, ~flat])
    assert ours[:, flat].abs().max() < 5e-3 if bool(flat.any()) else True


def mdpo_rollout(case) -> Rollout:
    """The stored trajectory as a rollout of one group."""
    tensors = case["tensors"]
    prompt, attention = tensors["prompt_ids"].long(), tensors["prompt_mask"].bool()
    start, canvases = prompt.shape[1], tensors["all_steps_input_ids"].long()
    group, length = canvases.shape[1:]

    def whole(completion):
        return torch.cat([prompt, completion.long()], dim=1)

    def beside(numbers):
        return torch.nn.functional.pad(numbers, (start, 0))

    steps = torch.arange(len(canvases))
    snapshots = tuple(
        Snapshot(
            step_N=torch.full((group,), step),
            canvas_NL=whole(canvases[step]),
            guesses_ZNL=whole(tensors["all_steps_completion_ids"][step])[None],
            logp_ZNL=torch.zeros(1, group, start + length),
            confidence_ZNL=beside(tensors["all_confidence"][step])[None] * (whole(canvases[step]) == MASK),
        )
        for step in steps.tolist()
    )
    tokens = snapshots[-1].guesses_ZNL[0]
    return Rollout.fake(
        tokens,
        prompt_length=start,
        group_size=group,
        mask_id=MASK,
        attention_NL=torch.nn.functional.pad(attention, (0, length), value=True),
        steps=len(steps),
        temperature=case["temperature"],
        remasking=case["rcr"],
        snapshots=snapshots,
    )


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case["name"])
def test_mdpo_loss_and_gradients_equal_the_authors(case, exact_llada_tiny):
    tensors, rollout = case["tensors"], mdpo_rollout(case)
    start = rollout.prompt_length
    (term,) = MDPO(beta=case["beta"], epsilon=case["epsilon"], steps=case["sample_train_steps"]).terms(EOS)
    batch = term.scoring_batch(rollout, tensors["rewards"][None], Uniforms(), 0, 1)
    units = torch.arange(len(batch.advantage_U)).view(case["num_generations"], -1)
    for index, (step, expected) in enumerate(zip(case["selected_steps"], case["micro_batches"], strict=True)):
        prefix = f"micro{index}."
        micro = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        keep = torch.zeros(len(batch.advantage_U), dtype=torch.bool)
        keep[units[:, index]] = True
        ours = batch.take_units(keep)
        masked = ours.scored_RL.sum(1)
        assert step == expected["step"]
        assert torch.equal(ours.inputs_FL, micro["input_ids"].long())
        assert torch.equal(ours.targets_RL[ours.scored_RL], micro["target_ids"].long()[ours.scored_RL])
        assert torch.equal(ours.attention_FL, micro["input_mask"].bool())
        assert int(masked.sum()) == expected["masked_tokens"]
        close(ours.advantage_U * masked / case["max_completion_length"], micro["advantages"])
        close(ours.token_weight_RL[:, start:] * masked[:, None], micro["conf"] * ours.scored_RL[:, start:])

        now = row_logp(exact_llada_tiny, ours)
        scored = ours.scored_RL[:, start:]
        # Errors of logits (1e-5) are divided by the temperature.
        close(now.detach()[:, start:], micro["per_token_logps"] * scored, atol=2e-5 / case["temperature"])

        def stored(name, micro=micro, scored=scored):
            return torch.nn.functional.pad(micro[name] * scored, (start, 0))

        old = stored("old_per_token_logps") if "old_per_token_logps" in micro else now.detach()
        reference = stored("ref_per_token_logps") if "ref_per_token_logps" in micro else None
        # The published lambda is L / (|x| + 1e-4).
        published = replace(ours, advantage_U=ours.advantage_U * masked / (masked + 1e-4))
        loss, sums = term.loss(published, now, old, reference, unit_count(published))
        close(loss.detach(), expected["loss"], rtol=2e-5)  # lambda times ratios: float32 log-probs again
        if reference is not None:
            close(sums["kl"] / sums["count"], expected["kl"])
        assert_gradients_equal(loss, exact_llada_tiny, micro, expected, case["temperature"])
