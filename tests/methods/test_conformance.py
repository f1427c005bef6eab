"""Every method: nothing scored is visible, equal rewards teach nothing, only the data decide the loss."""

import json
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache

import pytest
import torch

from helpers.small import EOS, MASK, prompts_of, small_denoiser
from unmask.methods import (
    GDPO,
    LFPO,
    MDPO,
    METHODS,
    SPG,
    WD1,
    DiffuGRPO,
    DiSPO,
    JustGRPO,
    StepMerge,
    TraceRL,
    UniGRPO,
)
from unmask.methods.dispo import BASES
from unmask.objective.likelihood import credited_count, row_logp, token_count, unit_count
from unmask.objective.masks import Branches
from unmask.objective.term import record_of
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.uniforms import Uniforms

ROWS = [[1, 2, 3, 4, 5, 6], [4, 5]]
GROUP = 3
DENOISER, REFERENCE = small_denoiser(seed=1), small_denoiser(seed=2)
SAMPLER = Sampler(max_new_tokens=6, block_length=3, steps=6, temperature=0.8)
VARIANTS = {
    **{name: method() for name, method in METHODS.items()},
    "diffu-grpo, shared mask": DiffuGRPO(shared_prompt_mask=True, prompt_mask_prob=0.5),
    "dispo, shared": DiSPO(base=DiffuGRPO(shared_prompt_mask=True, beta=0.0), branches=3, shared_step=True, degree=0.0),
    **{
        f"dispo on {name}": DiSPO(base=base(), branches=3, degree=1.0)
        for name, base in BASES.items()
        if name != "diffu-grpo"
    },
    "wd1-P": WD1(positive_only=True),
    "unigrpo, independent": UniGRPO(views=3, divergence_to="old"),
    "spg, one view": SPG(views=1, beta=1.0),
    "gdpo, to the end": GDPO(nodes=2, empirical=True, through_eos=True),
    "lfpo, recorded": LFPO(recorded_states=True, blend=0.5),
    "just-grpo, fast": JustGRPO(fraction=0.25),
    "tracerl, all": TraceRL(shrink=2, eos_tokens=-1, lowest=0.0, highest=1.0),
    "tracerl, one end": TraceRL(shrink=1, eos_tokens=1, lowest=0.0, highest=1.0),
    "mdpo, plain": MDPO(steps=2, length_weight=False, confidence_weight=False, advantage="step_outcome"),
    "mdpo, committed": MDPO(steps=3, positions="committed", step_choice="spread_steps", advantage="step_reward"),
    "mdpo, through eos": MDPO(steps=3, positions="masked_through_eos", step_choice="random_steps"),
}
every_method = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
# Options change masks and weights, not how views are split or shared: once a method is enough, and quicker.
PAPERS = {name: method for name, method in VARIANTS.items() if name in METHODS or name.startswith("dispo on")}
each_paper = pytest.mark.parametrize("method", PAPERS.values(), ids=PAPERS)


def rewards_of(term, rollout, order) -> torch.Tensor:
    """Random rewards of the shape that the term's credit reads, keyed by sample."""
    columns = []
    if term.record is not None:
        columns = [len(rollout.snapshots) if isinstance(term.record, EveryStep) else term.record.guesses]
    rewards = Uniforms().key("rewards", torch.arange(len(ROWS) * GROUP * 10)).draw().float()
    rewards = rewards[: len(ROWS) * GROUP * (columns[0] if columns else 1)].view(len(ROWS), GROUP, *columns)
    return rewards[:, order]


@cache
def scene(method, order=tuple(range(GROUP)), width=6):
    """A real rollout for the method, `order` of the samples in their groups; its terms with their rewards."""
    terms = method.terms(EOS)
    prompts = prompts_of(ROWS, samples=order, width=width)
    rollout = SAMPLER(DENOISER, prompts, Uniforms(), record_of(terms), group_size=GROUP)
    return rollout, [(term, rewards_of(term, rollout, order)) for term in terms]


def frozen(term, views, on_policy=False):
    """Old answers, a neighbour of the reference's, and the reference's; those of now on policy."""
    with torch.no_grad():
        now, reference = row_logp(DENOISER, views), row_logp(REFERENCE, views)
    return (now, now) if on_policy else (0.9 * now + 0.1 * reference, reference)


def credited(term, views, on_policy=False):
    """The views with their final credit, which a batch has before it is split."""
    _, reference = frozen(term, views, on_policy)
    with torch.no_grad():
        return term.credited(views, term.answers(DENOISER, views), reference, torch.mean)


def term_loss(term, views, normaliser=None, on_policy=False):
    """The loss of some views, whose credit is final where the normaliser is given."""
    old_denoiser = None if on_policy else REFERENCE
    if normaliser is None:
        views, normaliser = credited(term, views, on_policy), term.normaliser(views).clamp(min=1)
    now = term.answers(DENOISER, views, old_denoiser)
    return term.loss(views, now, *frozen(term, views, on_policy), normaliser)[0]


def losses(method, update=0, **changes):
    rollout, parts = scene(method, **changes)
    return [term_loss(term, term.views(rollout, rewards, Uniforms(), update, 2)).detach() for term, rewards in parts]


def gradients_of(loss):
    return torch.autograd.grad(loss, list(DENOISER.parameters()), allow_unused=True)


def views_of(method, update=0):
    rollout, parts = scene(method)
    return [(term, term.views(rollout, rewards, Uniforms(), update, 2)) for term, rewards in parts]


def close(ours, theirs, atol=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=atol)


# ---- settings ----


@every_method
def test_settings_are_read_back(method):
    assert type(method)(**{setting.name: getattr(method, setting.name) for setting in fields(method)}) == method
    printed = asdict(method)
    for setting in fields(method):
        if is_dataclass(getattr(method, setting.name)):
            printed[setting.name] = type(getattr(method, setting.name))(**printed[setting.name])
    assert type(method)(**printed) == method
    json.dumps(asdict(method))


def test_methods_have_their_names():
    assert all(method.name == name for name, method in METHODS.items())
    assert DiSPO().base == DiffuGRPO()


@pytest.mark.parametrize("setting", ["advantage", "step_choice", "positions"])
def test_unknown_pieces_are_refused(setting):
    with pytest.raises(ValueError, match=f"mdpo {setting} 'luck' is unknown"):
        MDPO(**{setting: "luck"})


def test_one_record_serves_all_terms():
    assert record_of(DiffuGRPO().terms(EOS)) is None
    assert record_of(MDPO().terms(EOS)) == EveryStep()
    record = record_of(DiSPO(branches=3, degree=1.0, shared_step=True).terms(EOS))
    assert record == OneStep(guesses=3, degree=1.0, shared=True)
    with pytest.raises(ValueError, match="different records"):
        record_of((*MDPO().terms(EOS), *DiSPO().terms(EOS)))


# ---- views ----


@every_method
def test_scored_targets_are_masked_in_their_input(method):
    for update in (0, 1):
        for _, views in views_of(method, update):
            inputs_RL = views.inputs_FL[views.forward_R]
            assert bool(views.scored_RL.any())
            assert bool((inputs_RL[views.scored_RL] == MASK).all())
            assert not bool((views.targets_RL[views.scored_RL] == MASK).any())
            assert bool(views.attention_FL[views.forward_R][views.scored_RL].all())
            assert bool((views.weight_RL[~views.scored_RL] == 0).all())
            assert bool((views.weight_RL[views.scored_RL] != 0).all())


@every_method
def test_counts(method):
    for _, views in views_of(method):
        assert token_count(views) == views.length_U.sum()
        assert unit_count(views) == len(views.credit_U) == len(views.length_U)
        assert credited_count(views) == ((views.credit_U != 0) & views.scored_U).sum() <= unit_count(views)
        assert views.scored_U.tolist() == [
            bool(views.scored_RL[views.unit_R == unit].any()) for unit in range(len(views.credit_U))
        ]
        assert sorted(views.unit_R.unique().tolist()) == list(range(len(views.credit_U)))
        assert sorted(views.forward_R.unique().tolist()) == list(range(len(views.inputs_FL)))
        assert views.temperature == (SAMPLER.temperature if isinstance(method, MDPO) else 1.0)


@every_method
def test_taken_units_keep_their_answers(method):
    for _, views in views_of(method):
        units = len(views.credit_U)
        keep = Uniforms().key("keep", torch.arange(units)).draw() < 0.5
        taken, rows = views.take_units(keep), keep[views.unit_R]
        assert torch.equal(taken.credit_U, views.credit_U[keep])
        assert torch.equal(taken.length_U, views.length_U[keep])
        for name in ("targets_RL", "scored_RL", "weight_RL"):
            assert torch.equal(getattr(taken, name), getattr(views, name)[rows])
        assert torch.equal(taken.inputs_FL[taken.forward_R], views.inputs_FL[views.forward_R[rows]])
        assert len(taken.inputs_FL) == len(views.forward_R[rows].unique())
        assert torch.equal(taken.credit_U[taken.unit_R], views.credit_U[views.unit_R[rows]])
        close(row_logp(DENOISER, taken).detach(), row_logp(DENOISER, views).detach()[rows], atol=1e-5)


@every_method
def test_recorded_log_probs_are_those_of_the_rows(method):
    for _, views in views_of(method):
        if views.old_RL is not None:
            close(row_logp(DENOISER, views).detach(), views.old_RL * views.scored_RL, atol=1e-5)
    assert (views.old_RL is not None) == isinstance(method, MDPO)


@every_method
def test_prompt_masks_are_drawn_afresh(method):
    for (term, first), (_, again), (_, second) in zip(*[views_of(method, update) for update in (0, 0, 1)], strict=True):
        assert torch.equal(first.inputs_FL, again.inputs_FL)
        fixed = isinstance(method, (MDPO, JustGRPO, TraceRL, StepMerge))
        fixed |= isinstance(term.masking, Branches) and term.masking.prompt_mask_prob == 0
        assert torch.equal(first.inputs_FL, second.inputs_FL) == fixed


# ---- losses ----


@every_method
@pytest.mark.parametrize("beta", [0.0, None], ids=["no divergence", "at the reference"])
def test_equal_rewards_teach_nothing(method, beta):
    rollout, parts = scene(replace(method, step_choice="spread_steps") if isinstance(method, MDPO) else method)
    for term, rewards in parts:
        term = replace(term, penalty=None) if beta == 0.0 else term
        views = term.views(rollout, torch.full_like(rewards, 0.5), Uniforms(), 0, 2)
        if isinstance(method, WD1) and method.positive_only:
            assert bool((views.credit_U == 1).all())  # as its authors say
            continue
        assert bool((views.credit_U == 0).all())
        largest = max(float(g.abs().max()) for g in learned(term, rollout, rewards) if g is not None)
        assert largest > 0
        for gradient in gradients_of(term_loss(term, views, on_policy=True)):
            # LFPO's two gradients cancel, the others are never there.
            assert gradient is None or float(gradient.abs().max()) <= (1e-6 * largest if term.blend else 0)


def learned(term, rollout, rewards):
    """Gradients from unequal rewards."""
    return gradients_of(term_loss(term, term.views(rollout, rewards, Uniforms(), 0, 2), on_policy=True))


@every_method
def test_units_without_credit_are_trained_for_divergence_alone(method):
    for term, views in views_of(method):
        views = replace(views, credit_U=views.credit_U.index_fill(0, torch.tensor([0]), 0.0))
        credited, scored = (views.credit_U != 0).tolist(), views.scored_U.tolist()
        without = replace(term, penalty=None)
        if not term.surrogate.trains_all:
            assert without.trained(views).tolist() == [*map(all, zip(credited, scored, strict=True))]
            assert not bool(without.trained(views)[0])
        paid = replace(term, penalty=DiffuGRPO(beta=0.1).terms(EOS)[0].penalty)
        assert paid.trained(views).tolist() == scored


@every_method
def test_padding_does_not_matter(method):
    for ours, padded in zip(losses(method), losses(method, width=11), strict=True):
        close(ours, padded)


@every_method
def test_order_in_the_group_does_not_matter(method):
    for ours, turned in zip(losses(method), losses(method, order=(2, 0, 1)), strict=True):
        close(ours, turned)


@every_method
def test_the_global_seed_does_not_matter(method):
    runs = []
    for seed in (1, 2):
        scene.cache_clear()
        torch.manual_seed(seed)
        runs.append(losses(method))
    assert all(torch.equal(ours, again) for ours, again in zip(*runs, strict=True))


@each_paper
@pytest.mark.parametrize("forwards", [3])
def test_micro_batches_add_up(method, forwards):
    for term, views in views_of(method):
        normaliser, views = term.normaliser(views), credited(term, views)
        whole = term_loss(term, views, normaliser)
        parts = list(views.micro_batches(forwards))
        assert torch.stack([keep for _, keep in parts]).sum(0).tolist() == [1] * len(views.credit_U)
        largest_unit = max(len(views.forward_R[views.unit_R == unit].unique()) for unit in range(len(views.credit_U)))
        assert all(len(part.inputs_FL) < forwards + largest_unit for part, _ in parts)
        assert all(torch.equal(part.credit_U, views.credit_U[keep]) for part, keep in parts)
        pieces = [term_loss(term, part, normaliser) for part, _ in parts]
        close(sum(pieces).detach(), whole.detach())
        for ours, summed in zip(gradients_of(whole), zip(*map(gradients_of, pieces), strict=True), strict=True):
            close(sum(summed), ours, atol=1e-5 * float(ours.abs().max()) + 1e-7)


@each_paper
def test_a_shared_forward_equals_one_a_row(method):
    for term, views in views_of(method):
        apart = replace(
            views,
            inputs_FL=views.inputs_FL[views.forward_R],
            attention_FL=views.attention_FL[views.forward_R],
            forward_R=torch.arange(len(views.forward_R)),
        )
        together, separate = term_loss(term, views), term_loss(term, apart)
        close(together.detach(), separate.detach())
        for ours, theirs in zip(gradients_of(together), gradients_of(separate), strict=True):
            close(ours, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-7)


def test_a_shared_prompt_mask_needs_one_forward_a_group():
    shared, single = (DiffuGRPO(shared_prompt_mask=flag, prompt_mask_prob=0.5) for flag in (True, False))
    ((_, one_mask),), ((_, masks),) = views_of(shared), views_of(single)
    assert len(one_mask.inputs_FL) == len(ROWS)
    assert one_mask.forward_R.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(masks.inputs_FL) == len(ROWS) * GROUP
    assert len(masks.inputs_FL[:GROUP].unique(dim=0)) > 1
    assert bool((one_mask.inputs_FL[0] != one_mask.inputs_FL[1]).any())


def test_the_branch_term_is_weighed_and_clipped_as_its_base():
    base, branch = DiSPO(alpha=0.1, base=DiffuGRPO(epsilon=0.3, beta=0.2)).terms(EOS)
    assert (base.weight, branch.weight) == (1.0, 0.1)
    assert branch.surrogate == base.surrogate
    assert branch.penalty == base.penalty
    ((_, _), (term, views)) = views_of(DiSPO(alpha=0.1))
    close(term_loss(replace(term, weight=1.0), views).detach() * 0.1, term_loss(term, views).detach())
