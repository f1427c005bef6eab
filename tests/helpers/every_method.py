"""For tests of all methods: each with its settings and variants, a real rollout for it, its batches and losses."""

from functools import cache

import pytest
import torch

from helpers.small import EOS, prompts_of, small_denoiser
from helpers.toy_method import Toy
from unmask.methods import GDPO, LFPO, MDPO, METHODS, SPG, WD1, DiffuGRPO, DiSPO, JustGRPO, TraceRL, UniGRPO
from unmask.methods.dispo import BASES
from unmask.objective.likelihood import row_logp
from unmask.objective.term import record_of
from unmask.sampling.records import EveryStep
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
    "unigrpo, independent": UniGRPO(num_masks=3, divergence_to="old"),
    "spg, one row": SPG(num_masks=1, beta=1.0),
    "gdpo, to the end": GDPO(nodes=2, empirical=True, through_eos=True),
    "lfpo, recorded": LFPO(recorded_states=True, blend=0.5),
    "just-grpo, fast": JustGRPO(fraction=0.25),
    "tracerl, all": TraceRL(shrink=2, eos_tokens=-1, lowest=0.0, highest=1.0),
    "tracerl, one end": TraceRL(shrink=1, eos_tokens=1, lowest=0.0, highest=1.0),
    "mdpo, plain": MDPO(steps=2, length_weight=False, confidence_weight=False, advantage="step_outcome"),
    "mdpo, committed": MDPO(steps=3, positions="committed", step_choice="spread_steps", advantage="step_reward"),
    "of the user's": Toy(share=0.4),
    "mdpo, through eos": MDPO(steps=3, positions="masked_through_eos", step_choice="random_steps"),
}
every_method = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
# Options change masks and weights, not how batches are split or shared: once a method is enough, and quicker.
PAPERS = {name: method for name, method in VARIANTS.items() if name in METHODS or name.startswith("dispo on")}
each_paper = pytest.mark.parametrize("method", PAPERS.values(), ids=PAPERS)


def rewards_of(term, rollout, order) -> torch.Tensor:
    """Random rewards of the shape that the term's advantage reads, keyed by sample."""
    columns = []
    if term.record is not None:
        columns = [len(rollout.snapshots) if isinstance(term.record, EveryStep) else term.record.guesses]
    rewards = Uniforms().key("rewards", torch.arange(len(ROWS) * GROUP * 10)).draw().float()
    rewards = rewards[: len(ROWS) * GROUP * (columns[0] if columns else 1)].view(len(ROWS), GROUP, *columns)
    return rewards[:, order]


@cache
def rollout_and_rewards(method, order=tuple(range(GROUP)), width=6):
    """A real rollout for the method, `order` of the samples in their groups; its terms with their rewards."""
    terms = method.terms(EOS)
    prompts = prompts_of(ROWS, samples=order, width=width)
    rollout = SAMPLER(DENOISER, prompts, Uniforms(), record_of(terms), group_size=GROUP)
    return rollout, [(term, rewards_of(term, rollout, order)) for term in terms]


def frozen(term, batch, on_policy=False):
    """Old log-probs, neighbours of the reference's, and the reference's; the trained policy's own on policy."""
    with torch.no_grad():
        now, reference = row_logp(DENOISER, batch), row_logp(REFERENCE, batch)
    return (now, now) if on_policy else (0.9 * now + 0.1 * reference, reference)


def with_final_advantages(term, batch, on_policy=False):
    """The batch with their final advantage, which a batch has before it is split."""
    _, reference = frozen(term, batch, on_policy)
    with torch.no_grad():
        return term.with_final_advantages(batch, term.answers(DENOISER, batch), reference, torch.mean)


def term_loss(term, batch, normalizer=None, on_policy=False):
    """The loss of some batch, whose advantage is final where the normalizer is given."""
    old_denoiser = None if on_policy else REFERENCE
    if normalizer is None:
        batch, normalizer = with_final_advantages(term, batch, on_policy), term.normalizer(batch).clamp(min=1)
    now = term.answers(DENOISER, batch, old_denoiser)
    return term.loss(batch, now, *frozen(term, batch, on_policy), normalizer)[0]


def losses(method, update=0, **changes):
    rollout, parts = rollout_and_rewards(method, **changes)
    return [
        term_loss(term, term.scoring_batch(rollout, rewards, Uniforms(), update, 2)).detach() for term, rewards in parts
    ]


def gradients_of(loss):
    return torch.autograd.grad(loss, list(DENOISER.parameters()), allow_unused=True)


def batches_of(method, update=0):
    rollout, parts = rollout_and_rewards(method)
    return [(term, term.scoring_batch(rollout, rewards, Uniforms(), update, 2)) for term, rewards in parts]


def close(ours, theirs, atol=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=atol)
