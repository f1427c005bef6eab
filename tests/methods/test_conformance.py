"""Every method: nothing scored is visible, equal rewards teach nothing, only the data decide the loss."""

import json
import math
from dataclasses import asdict, fields, is_dataclass, replace

import pytest
import torch

from helpers.every_method import (
    DENOISER,
    GROUP,
    ROWS,
    SAMPLER,
    batches_of,
    close,
    each_paper,
    every_method,
    gradients_of,
    losses,
    rollout_and_rewards,
    term_loss,
    with_final_advantages,
)
from helpers.small import EOS, MASK
from unmask.methods import MDPO, METHODS, WD1, DiffuGRPO, DiSPO, JustGRPO, StepMerge, TraceRL
from unmask.methods.dispo import BASES
from unmask.objective.divergences import k3, penalty
from unmask.objective.likelihood import active_unit_count, per_token, row_logp, token_count, unit_count
from unmask.objective.losses import ClippedSurrogate
from unmask.objective.masks import Branches
from unmask.objective.term import record_of
from unmask.sampling.records import EveryStep, OneStep
from unmask.uniforms import Uniforms

# ---- settings ----


@every_method
def test_method_settings_are_read_back(method):
    assert type(method)(**{setting.name: getattr(method, setting.name) for setting in fields(method)}) == method
    printed = asdict(method)
    for setting in fields(method):
        if is_dataclass(getattr(method, setting.name)):
            printed[setting.name] = type(getattr(method, setting.name))(**printed[setting.name])
    assert type(method)(**printed) == method
    json.dumps(asdict(method))


def test_methods_table_is_keyed_by_name():
    assert all(method.name == name for name, method in METHODS.items())
    assert DiSPO().base == DiffuGRPO()


@pytest.mark.parametrize("setting", ["advantage", "step_choice", "positions"])
def test_mdpo_refuses_unknown_pieces(setting):
    with pytest.raises(ValueError, match=f"mdpo {setting} 'luck' is unknown"):
        MDPO(**{setting: "luck"})


def test_record_of_serves_all_terms():
    assert record_of(DiffuGRPO().terms(EOS)) is None
    assert record_of(MDPO().terms(EOS)) == EveryStep()
    record = record_of(DiSPO(branches=3, degree=1.0, shared_step=True).terms(EOS))
    assert record == OneStep(guesses=3, degree=1.0, shared=True)
    with pytest.raises(ValueError, match="different records"):
        record_of((*MDPO().terms(EOS), *DiSPO().terms(EOS)))


# ---- batch ----


@every_method
def test_scored_targets_are_masked_in_their_input(method):
    for update in (0, 1):
        for _, batch in batches_of(method, update):
            inputs_RL = batch.inputs_FL[batch.forward_R]
            assert bool(batch.scored_RL.any())
            assert bool((inputs_RL[batch.scored_RL] == MASK).all())
            assert not bool((batch.targets_RL[batch.scored_RL] == MASK).any())
            assert bool(batch.attention_FL[batch.forward_R][batch.scored_RL].all())
            assert bool((batch.token_weight_RL[~batch.scored_RL] == 0).all())
            assert bool((batch.token_weight_RL[batch.scored_RL] != 0).all())


@every_method
def test_normalizers_count_units_and_tokens(method):
    for _, batch in batches_of(method):
        assert token_count(batch) == batch.length_U.sum()
        assert unit_count(batch) == len(batch.advantage_U) == len(batch.length_U)
        assert active_unit_count(batch) == ((batch.advantage_U != 0) & batch.scored_U).sum() <= unit_count(batch)
        assert batch.scored_U.tolist() == [
            bool(batch.scored_RL[batch.unit_R == unit].any()) for unit in range(len(batch.advantage_U))
        ]
        assert sorted(batch.unit_R.unique().tolist()) == list(range(len(batch.advantage_U)))
        assert sorted(batch.forward_R.unique().tolist()) == list(range(len(batch.inputs_FL)))
        assert batch.temperature == (SAMPLER.temperature if isinstance(method, MDPO) else 1.0)


@every_method
def test_take_units_keeps_log_probs(method):
    for _, batch in batches_of(method):
        units = len(batch.advantage_U)
        keep = Uniforms().key("keep", torch.arange(units)).draw() < 0.5
        taken, rows = batch.take_units(keep), keep[batch.unit_R]
        assert torch.equal(taken.advantage_U, batch.advantage_U[keep])
        assert torch.equal(taken.length_U, batch.length_U[keep])
        for name in ("targets_RL", "scored_RL", "token_weight_RL"):
            assert torch.equal(getattr(taken, name), getattr(batch, name)[rows])
        assert torch.equal(taken.inputs_FL[taken.forward_R], batch.inputs_FL[batch.forward_R[rows]])
        assert len(taken.inputs_FL) == len(batch.forward_R[rows].unique())
        assert torch.equal(taken.advantage_U[taken.unit_R], batch.advantage_U[batch.unit_R[rows]])
        close(row_logp(DENOISER, taken).detach(), row_logp(DENOISER, batch).detach()[rows], atol=1e-5)


@every_method
def test_recorded_old_logps_are_those_of_the_rows(method):
    for _, batch in batches_of(method):
        if batch.old_RL is not None:
            close(row_logp(DENOISER, batch).detach(), batch.old_RL * batch.scored_RL, atol=1e-5)
    assert (batch.old_RL is not None) == isinstance(method, MDPO)


@every_method
def test_prompt_masks_are_drawn_afresh(method):
    for (term, first), (_, again), (_, second) in zip(
        *[batches_of(method, update) for update in (0, 0, 1)], strict=True
    ):
        assert torch.equal(first.inputs_FL, again.inputs_FL)
        fixed = isinstance(method, (MDPO, JustGRPO, TraceRL, StepMerge))
        fixed |= isinstance(term.masking, Branches) and term.masking.prompt_mask_prob == 0
        assert torch.equal(first.inputs_FL, second.inputs_FL) == fixed


# ---- losses ----


@every_method
@pytest.mark.parametrize("beta", [0.0, None], ids=["no divergence", "at the reference"])
def test_equal_rewards_have_no_gradient(method, beta):
    rollout, parts = rollout_and_rewards(
        replace(method, step_choice="spread_steps") if isinstance(method, MDPO) else method
    )
    for term, rewards in parts:
        term = replace(term, penalty=None) if beta == 0.0 else term
        batch = term.scoring_batch(rollout, torch.full_like(rewards, 0.5), Uniforms(), 0, 2)
        if isinstance(method, WD1) and method.positive_only:
            assert bool((batch.advantage_U == 1).all())  # as its authors say
            continue
        assert bool((batch.advantage_U == 0).all())
        largest = max(float(g.abs().max()) for g in learned(term, rollout, rewards) if g is not None)
        assert largest > 0
        for gradient in gradients_of(term_loss(term, batch, on_policy=True)):
            # LFPO's two gradients cancel, the others are never there.
            assert gradient is None or float(gradient.abs().max()) <= (1e-6 * largest if term.blend else 0)


def learned(term, rollout, rewards):
    """Gradients from unequal rewards."""
    return gradients_of(term_loss(term, term.scoring_batch(rollout, rewards, Uniforms(), 0, 2), on_policy=True))


@every_method
def test_trained_units_without_advantage_have_a_penalty(method):
    for term, batch in batches_of(method):
        batch = replace(batch, advantage_U=batch.advantage_U.index_fill(0, torch.tensor([0]), 0.0))
        with_advantage, scored = (batch.advantage_U != 0).tolist(), batch.scored_U.tolist()
        without = replace(term, penalty=None)
        if not term.surrogate.trains_zero_advantage:
            assert without.trained(batch).tolist() == [*map(all, zip(with_advantage, scored, strict=True))]
            assert not bool(without.trained(batch)[0])
        paid = replace(term, penalty=DiffuGRPO(beta=0.1).terms(EOS)[0].penalty)
        assert paid.trained(batch).tolist() == scored


@every_method
def test_loss_ignores_padding(method):
    for ours, padded in zip(losses(method), losses(method, width=11), strict=True):
        close(ours, padded)


@every_method
def test_loss_ignores_order_in_the_group(method):
    for ours, turned in zip(losses(method), losses(method, order=(2, 0, 1)), strict=True):
        close(ours, turned)


@every_method
def test_loss_ignores_the_global_seed(method):
    runs = []
    for seed in (1, 2):
        rollout_and_rewards.cache_clear()
        torch.manual_seed(seed)
        runs.append(losses(method))
    assert all(torch.equal(ours, again) for ours, again in zip(*runs, strict=True))


@each_paper
@pytest.mark.parametrize("forwards", [3])
def test_micro_batches_add_up_to_the_batch(method, forwards):
    for term, batch in batches_of(method):
        normalizer, batch = term.normalizer(batch), with_final_advantages(term, batch)
        whole = term_loss(term, batch, normalizer)
        parts = list(batch.micro_batches(forwards))
        assert torch.stack([keep for _, keep in parts]).sum(0).tolist() == [1] * len(batch.advantage_U)
        largest_unit = max(
            len(batch.forward_R[batch.unit_R == unit].unique()) for unit in range(len(batch.advantage_U))
        )
        assert all(len(part.inputs_FL) < forwards + largest_unit for part, _ in parts)
        assert all(torch.equal(part.advantage_U, batch.advantage_U[keep]) for part, keep in parts)
        pieces = [term_loss(term, part, normalizer) for part, _ in parts]
        close(sum(pieces).detach(), whole.detach())
        for ours, summed in zip(gradients_of(whole), zip(*map(gradients_of, pieces), strict=True), strict=True):
            close(sum(summed), ours, atol=1e-5 * float(ours.abs().max()) + 1e-7)


@each_paper
def test_shared_forward_equals_one_a_row(method):
    for term, batch in batches_of(method):
        apart = replace(
            batch,
            inputs_FL=batch.inputs_FL[batch.forward_R],
            attention_FL=batch.attention_FL[batch.forward_R],
            forward_R=torch.arange(len(batch.forward_R)),
        )
        together, separate = term_loss(term, batch), term_loss(term, apart)
        close(together.detach(), separate.detach())
        for ours, theirs in zip(gradients_of(together), gradients_of(separate), strict=True):
            close(ours, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-7)


def test_shared_prompt_mask_makes_one_forward_a_group():
    shared, single = (DiffuGRPO(shared_prompt_mask=flag, prompt_mask_prob=0.5) for flag in (True, False))
    ((_, one_mask),), ((_, masks),) = batches_of(shared), batches_of(single)
    assert len(one_mask.inputs_FL) == len(ROWS)
    assert one_mask.forward_R.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(masks.inputs_FL) == len(ROWS) * GROUP
    assert len(masks.inputs_FL[:GROUP].unique(dim=0)) > 1
    assert bool((one_mask.inputs_FL[0] != one_mask.inputs_FL[1]).any())


def test_dispo_branch_term_is_weighed_and_clipped_as_its_base():
    base, branch = DiSPO(alpha=0.1, base=DiffuGRPO(epsilon=0.3, beta=0.2)).terms(EOS)
    assert (base.coefficient, branch.coefficient) == (1.0, 0.1)
    assert branch.surrogate == base.surrogate
    assert branch.penalty == base.penalty
    ((_, _), (term, batch)) = batches_of(DiSPO(alpha=0.1))
    close(term_loss(replace(term, coefficient=1.0), batch).detach() * 0.1, term_loss(term, batch).detach())


@pytest.mark.parametrize("name", BASES)
def test_dispo_branch_term_is_that_of_the_paper_on_every_base(name):
    """Token clip 0.5, k3 0.04 to the reference, the prompt masked with probability 0.15."""
    branch = DiSPO(base=BASES[name]()).terms(EOS)[-1]
    assert branch.likelihood is per_token
    assert branch.surrogate == ClippedSurrogate(epsilon=0.5)
    assert branch.penalty == penalty(k3, 0.04)
    assert branch.masking.prompt_mask.prob == 0.15


def test_dispo_branch_term_is_the_mean_of_branches_means():
    """Mean over a branch's own scored tokens, then over the branches that have any; `token_mean`: over all tokens."""
    for token_mean in (False, True):
        *_, (term, batch) = batches_of(DiSPO(branches=3, token_mean=token_mean))
        scored_R = batch.scored_RL.sum(1)
        assert len(scored_R.unique()) > 1
        branch_R = [
            -advantage + 0.04 * (math.exp(0.1) - 1.1) if tokens else 0.0
            for advantage, tokens in zip(batch.advantage_U.tolist(), scored_R.tolist(), strict=True)
        ]
        weights = scored_R.double() if token_mean else (scored_R > 0).double()
        expected = (torch.tensor(branch_R, dtype=torch.float64) * weights).sum() / weights.sum()
        logp_RL = -batch.scored_RL.double()
        loss, _ = term.loss(batch, logp_RL, logp_RL, logp_RL + 0.1 * batch.scored_RL, term.normalizer(batch))
        assert loss.item() == pytest.approx(term.coefficient * expected.item(), abs=1e-6)


def test_mdpo_metrics_count_tokens_of_confidence_zero():
    """Their weight in the loss is 0, and the published KL counts them."""
    ((term, batch),) = batches_of(MDPO())
    surest_RL = batch.token_weight_RL == batch.token_weight_RL.amax(1, keepdim=True)
    batch = replace(batch, token_weight_RL=batch.token_weight_RL.masked_fill(surest_RL, 0.0))
    logp_RL = -1.0 * batch.scored_RL
    _, sums = term.loss(batch, logp_RL, logp_RL, logp_RL + 0.2 * batch.scored_RL, term.normalizer(batch))
    assert sums["count"] == batch.scored_RL.sum()
    assert (sums["kl"] / sums["count"]).item() == pytest.approx(0.02, rel=1e-5)
