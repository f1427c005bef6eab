"""Every method on a model that attends in blocks of its own (LLaDA2): its states are scored as they were sampled."""

from dataclasses import replace

import pytest
import torch

from helpers.small import EOS, MASK, prompts_of, small_denoiser
from unmask.methods import METHODS, TraceRL
from unmask.objective.likelihood import row_logp
from unmask.objective.term import record_of
from unmask.sampling.records import EveryStep
from unmask.sampling.sampler import Sampler
from unmask.uniforms import Uniforms

GROUP, BLOCK = 3, 4
ROWS = [[1, 2, 3, 4, 5, 6], [4, 5], [3, 1, 2, 5]]  # they end in different places of a block
DENOISER = small_denoiser(seed=1)
DENOISER.block_length = BLOCK
SAMPLER = Sampler(max_new_tokens=8, block_length=BLOCK, steps=4, temperature=1.0)


def rollout_of(record=None, rows=ROWS, width=6):
    prompts = prompts_of(rows, samples=range(GROUP), width=width)
    return SAMPLER(DENOISER, prompts, Uniforms(), record, group_size=GROUP)


def views_of(term, rollout):
    columns = ()
    if term.record is not None:
        columns = (len(rollout.snapshots) if isinstance(term.record, EveryStep) else term.record.guesses,)
    rewards = Uniforms().key("rewards", torch.arange(len(ROWS) * GROUP * max(1, *columns, 1))).draw().float()
    return term.scoring_batch(rollout, rewards.view(len(ROWS), GROUP, *columns), Uniforms(), 0, 1)


@pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=METHODS)
def test_loss_on_block_model_is_finite_and_ignores_padding(method):
    terms, losses = method.terms(EOS), []
    for width in (6, 9):
        rollout = rollout_of(record_of(terms), width=width)
        for term in terms:
            batch = views_of(term, rollout)
            assert bool((batch.inputs_FL[batch.forward_R][batch.scored_RL] == MASK).all())
            with torch.no_grad():
                old = row_logp(DENOISER, batch)
                batch = term.with_final_advantages(batch, term.answers(DENOISER, batch), old, torch.mean)
            now = term.answers(DENOISER, batch)
            loss = term.loss(batch, now, old, old, term.normalizer(batch).clamp(min=1))[0]
            gradients = torch.autograd.grad(loss, list(DENOISER.parameters()), allow_unused=True)
            losses.append((width, loss.detach(), sum(g.abs().sum() for g in gradients if g is not None)))
    first, again = ([entry[1:] for entry in losses if entry[0] == width] for width in (6, 9))
    for (ours, size), (padded, padded_size) in zip(first, again, strict=True):
        torch.testing.assert_close(ours, padded, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(size, padded_size, rtol=1e-3, atol=1e-5)
        assert size > 0


def test_mdpo_guesses_on_block_model_are_scored_as_they_were_drawn():
    """MDPO's states hold masked blocks ahead, which the block at hand does not see."""
    (term,) = METHODS["mdpo"]().terms(EOS)
    batch = views_of(term, rollout_of(record_of((term,))))
    scored = row_logp(DENOISER, batch).detach()
    torch.testing.assert_close(scored, batch.old_RL * batch.scored_RL, rtol=1e-4, atol=1e-4)


def test_tracerl_rows_on_block_model_are_scored_as_they_were_sampled():
    """Segments of one step: log-probs of the rows are those that the sampler drew from."""
    (term,) = replace(TraceRL(), shrink=1, eos_tokens=-1, lowest=0.0, highest=1.0).terms(EOS)
    rollout = rollout_of()
    batch = views_of(term, rollout)
    unit_rows = row_logp(DENOISER, batch).detach()
    sample_R = batch.unit_R.new_tensor(
        [
            next(index for index in range(len(rollout.tokens_NL)) if torch.equal(rollout.tokens_NL[index], row))
            for row in batch.targets_RL
        ]
    )
    expected = rollout.sampled_logp_NL[sample_R] * batch.scored_RL
    torch.testing.assert_close(unit_rows, expected, rtol=1e-4, atol=1e-4)
    assert int(batch.scored_RL.sum()) > 0
