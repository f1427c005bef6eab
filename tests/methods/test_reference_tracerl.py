"""The authors' own TraceRL code gives the same rows, log-probs, losses and gradients (1e-5)."""

from dataclasses import replace

import pytest
import torch

from conftest import reference_cases
from helpers.reference_tools import EOS, GROUPS, assert_gradients_equal, close, rollout_of
from unmask.methods import TraceRL
from unmask.objective import advantages
from unmask.objective.likelihood import row_logp, unit_count
from unmask.uniforms import Uniforms

every_case = pytest.mark.parametrize("case", reference_cases("methods/tracerl"), ids=lambda case: case["name"])


def term_of(case):
    method = TraceRL(
        shrink=case["shrink"],
        eos_tokens=-1 if case["post_num"] is None else case["post_num"],
        epsilon=case["eps"],
        beta=case["beta"],
        estimate="k3" if case["use_kl_estimator_k3"] else "k1",
    )
    (term,) = method.terms(EOS)
    # The stored advantages stand in for those of the published reward script: centered, not divided by the std.
    return replace(term, advantage=advantages.centered)


def rows_of(case):
    """The rows in which something is scored, the only ones that the published code makes."""
    tensors, shared = case["tensors"], case["shared"]
    rollout = rollout_of(shared, pads_attended=True, step_map=tensors["step_map"])
    batch = term_of(case).scoring_batch(rollout, shared["rewards"].view(GROUPS), Uniforms(), 0, 1)
    return batch.take_units(batch.scored_U)


@every_case
def test_tracerl_rows_equal_the_authors(case):
    tensors, shared, ours = case["tensors"], case["shared"], rows_of(case)
    source = tensors["row_source_sequence"].long()
    assert len(ours.inputs_FL) == case["rows"]
    assert torch.equal(ours.inputs_FL, tensors["noisy_input_ids"].long())
    assert torch.equal(ours.scored_RL, tensors["loss_mask"].bool())
    assert torch.equal(ours.targets_RL, torch.cat([shared["prompt_ids"], shared["completion_ids"]], 1).long()[source])
    close(ours.advantage_U, tensors["row_advantage"])
    close(ours.advantage_U, shared["advantages"][source])
    close(ours.token_weight_RL.sum(1), torch.ones(case["rows"]))


@every_case
def test_tracerl_loss_and_gradients_equal_the_authors(case, exact_llada_tiny):
    tensors, term, batch = case["tensors"], term_of(case), rows_of(case)
    used = torch.zeros(case["rows"], dtype=torch.bool)
    used[tensors["loss_rows"].long()] = True
    batch = batch.take_units(used)
    now = row_logp(exact_llada_tiny, batch)
    # 2e-5: log-probs near -10 from logits near 10, in float32.
    close(now.detach(), tensors["new_logps_loss_rows"] * batch.scored_RL, atol=2e-5)
    old = tensors["old_logps_loss_rows"] * batch.scored_RL
    # The published mean is over all rows of the call, those of the one sequence of advantage 0 too: ours leaves
    # rows without advantage out, which dropped groups have (and, of rewards 0 and 1, no others).
    loss, _ = term.loss(batch, now, old, None, unit_count(batch))
    close(loss.detach(), case["loss"])
    assert_gradients_equal(loss, exact_llada_tiny, tensors, case)


def test_tracerl_advantage_is_the_z_score_of_the_population():
    """Not stored: the rule of the published reward script, on the stored rewards, whose group means are 0.5 and 0.7."""
    rewards = reference_cases("methods/tracerl")[0]["shared"]["rewards"].view(GROUPS)
    (term,) = TraceRL().terms(EOS)
    # Squared distances from the means sum to 0.5 and 2.54.
    expected = [[d / (0.5 / 3) ** 0.5 for d in (-0.5, 0.5, 0.0)], [d / (2.54 / 3) ** 0.5 for d in (1.3, -0.7, -0.6)]]
    close(term.advantage(rewards), expected)
    close(replace(term.advantage, highest=0.6)(rewards), [expected[0], [0.0] * 3])
    close(replace(term.advantage, lowest=0.6)(rewards), [[0.0] * 3, expected[1]])
