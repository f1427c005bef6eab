"""The authors' own wd1 code gives the same log-probs, weights, losses and gradients (1e-5)."""

from dataclasses import replace

import pytest
import torch

from conftest import reference_cases
from helpers.reference_tools import EOS, GROUPS, assert_gradients_equal, beside_prompt, close, d1_views, rollout_of
from unmask.methods import WD1
from unmask.objective import advantages
from unmask.objective.likelihood import row_logp, unit_count
from unmask.uniforms import Uniforms

every_case = pytest.mark.parametrize("case", reference_cases("methods/wd1"), ids=lambda case: case["name"])
WEIGHTS = {"RevDiffuGRPOTrainer": advantages.softmax_pair, "RevPSRDiffuGRPOTrainer": advantages.softmax_positive}


def term_of(case):
    (term,) = WD1(positive_only=case["trainer"] == "RevPSRDiffuGRPOTrainer").terms(EOS)
    return term


def published_weights(case):
    """w+ - w-, of a softmax over the whole batch of both groups."""
    return torch.tensor(case["weights_positive"]) - torch.tensor(case["weights_negative"] or 0.0)


@every_case
def test_wd1_weights_equal_the_authors(case):
    term, shared, weights = term_of(case), case["shared"], published_weights(case)
    assert term.advantage is WEIGHTS[case["trainer"]]
    centered = advantages.centered(shared["rewards"].view(GROUPS))
    close(centered.flatten(), shared["advantages"])
    # The published advantages are centered per group, then share one softmax: as one group they are our rewards.
    close(term.advantage(centered.view(1, -1))[0], weights.numel() * weights)


@every_case
def test_wd1_weights_are_those_of_the_group(case):
    """Ours are the published ones, each softmax renormalized within its group."""

    def renormalized(weights):
        weights = torch.tensor(weights).view(GROUPS)
        return weights / weights.sum(1, keepdim=True)

    expected = renormalized(case["weights_positive"])
    if case["weights_negative"]:
        expected = expected - renormalized(case["weights_negative"])
    close(term_of(case).advantage(case["shared"]["rewards"].view(GROUPS)), GROUPS[1] * expected)


@every_case
def test_wd1_loss_and_gradients_equal_the_authors(case, exact_llada_tiny):
    tensors, shared = case["tensors"], case["shared"]
    term, batch = term_of(case), d1_views(case)
    ours = term.scoring_batch(rollout_of(shared, pads_attended=True), shared["rewards"].view(GROUPS), Uniforms(), 0, 1)
    for name in ("targets_RL", "scored_RL", "token_weight_RL", "unit_R", "length_U", "attention_FL"):
        assert torch.equal(getattr(ours, name), getattr(batch, name))

    now = row_logp(exact_llada_tiny, batch)
    # 2e-5: log-probs near -10 from logits near 10, in float32.
    close(now.detach(), beside_prompt(tensors["per_token_logps"], shared) * batch.scored_RL, atol=2e-5)
    # The published loss is a sum over the batch and its one softmax, with no mean: one group in our mean over groups.
    batch = replace(batch, advantage_U=len(now) * published_weights(case))
    loss, _ = term.loss(batch, now, None, None, unit_count(batch))
    close(loss.detach(), case["loss"])
    assert_gradients_equal(loss, exact_llada_tiny, tensors, case)
