"""Bias and variance of every method's gradient against the exact gradient of the expected reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.methods.base import Method
from unmask.objective.term import Term, record_of
from unmask.oracle.toy import LENGTH, MASK, PROMPT, SAMPLERS, SYMBOLS, Toy, prompts, reward
from unmask.sampling.sampler import Sampler
from unmask.types import Rollout
from unmask.uniforms import Uniforms

_PLACES = SYMBOLS ** torch.arange(LENGTH - 1, -1, -1)
_REWARDS = torch.tensor(
    [reward((a, b, c)) for a in range(SYMBOLS) for b in range(SYMBOLS) for c in range(SYMBOLS)], dtype=torch.float64
)


@dataclass(frozen=True, kw_only=True)
class Bias:
    """A method's mean gradient compared with the exact one, and its noise."""

    cosine: float
    cosine_error: float  # standard error
    norm_ratio: float
    noise: float  # variance of a group's gradient x forwards a group / squared norm of its mean
    forwards: float  # with gradient, a completion


def expected_reward_gradient(toy: Toy, sampler: str) -> Tensor:
    """The exact grad E[r], by enumeration of every trajectory of the sampler: flat [D], float64."""
    expected = sum(t.logp.exp() * reward(t.completion) for t in SAMPLERS[sampler][1](toy))
    (gradient,) = torch.autograd.grad(torch.as_tensor(expected), toy.table)
    return gradient.flatten()


def rewards_of(tokens_NL: Tensor) -> Tensor:
    """Rewards [...] of token rows [..., L]; 0 for rows that hold a mask."""
    completions = tokens_NL[..., PROMPT:]
    index = (completions.clamp(max=SYMBOLS - 1) * _PLACES).sum(-1)
    return torch.where((completions == MASK).any(-1), 0.0, _REWARDS[index])


def _term_gradient(toy: Toy, term: Term, rollout: Rollout, uniforms: Uniforms) -> tuple[Tensor, int]:
    """Minus the gradient of one term's loss at now = old = reference, and its forwards."""
    guesses = [rewards_of(state.guesses_ZNL) for state in rollout.snapshots]
    scored = rewards_of(rollout.tokens_NL) if term.record is None else torch.cat(guesses).T
    rewards = scored.reshape(len(rollout.tokens_NL) // rollout.group_size, rollout.group_size, *scored.shape[1:])
    batch = term.scoring_batch(rollout, rewards, uniforms, 0, 1)
    now = term.answers(toy, batch)
    frozen = now.detach()
    batch = term.with_final_advantages(batch, frozen, frozen, torch.mean)
    old, reference = [frozen if term.reads(policy) else None for policy in ("old", "reference")]
    loss, _ = term.loss(batch, now, old, reference, term.normalizer(batch).clamp(min=1))
    (gradient,) = torch.autograd.grad(-loss, toy.table)
    return gradient.flatten(), len(batch.inputs_FL)


def gradient_batches(
    toy: Toy, method: Method, sampler: str, *, batches: int, groups: int, group_size: int, seed: int
) -> tuple[Tensor, float]:
    """Independent gradient estimates of a method, each from a batch of groups: [batches, D] and a cost.

    The cost is the number of forwards with gradient per completion.
    """
    terms = method.terms(toy.eos_id)
    draw = Sampler(
        max_new_tokens=LENGTH, block_length=LENGTH, steps=LENGTH, temperature=1.0, unmasking=SAMPLERS[sampler][0]
    )
    samples = prompts(groups * group_size, group_size)
    rows, forwards = [], 0
    for batch in range(batches):
        uniforms = Uniforms().key("oracle", seed, batch)
        rollout = draw(toy, samples, uniforms, record=record_of(terms), group_size=group_size)
        parts = [_term_gradient(toy, term, rollout, uniforms) for term in terms]
        rows.append(torch.stack([gradient for gradient, _ in parts]).sum(0))
        forwards = sum(count for _, count in parts)
    return torch.stack(rows), forwards / len(samples.prompt_N)


def compare(gradient_BD: Tensor, exact_D: Tensor, *, groups: int, group_size: int, forwards: float) -> Bias:
    """The Bias of gradient estimates [B, D] against the exact gradient [D]; the norm is freed of their noise."""
    cosine, norm = _cosine(gradient_BD, exact_D)
    keep = ~torch.eye(len(gradient_BD), dtype=torch.bool)
    left_out = torch.stack([_cosine(gradient_BD[rows], exact_D)[0] for rows in keep])
    error = ((len(keep) - 1) / len(keep) * (left_out - left_out.mean()).square().sum()).sqrt()
    variance = gradient_BD.var(0).sum() * groups
    return Bias(
        cosine=float(cosine),
        cosine_error=float(error),
        norm_ratio=float(norm / exact_D.norm()),
        noise=float(variance * forwards * group_size / norm.square()),
        forwards=forwards,
    )


def _cosine(gradient_BD: Tensor, exact_D: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of the mean with the exact gradient, and the norm of the mean: both free of the noise of the mean."""
    mean_D = gradient_BD.mean(0)
    square = mean_D.square().sum() - gradient_BD.var(0).sum() / len(gradient_BD)
    norm = square.clamp(min=1e-30).sqrt()
    return mean_D @ exact_D / (norm * exact_D.norm()), norm


def biases(
    toy: Toy,
    methods: dict[str, Method],
    samplers: Sequence[str],
    *,
    batches: int,
    groups: int,
    group_size: int,
    on_done: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, Bias]]:
    """The Bias of each method under each sampler: {method: {sampler: Bias}}; `on_done` is called after each of them."""
    exact = {sampler: expected_reward_gradient(toy, sampler) for sampler in samplers}
    table: dict[str, dict[str, Bias]] = {}
    for name, method in methods.items():
        for sampler in samplers:
            gradients, forwards = gradient_batches(
                toy, method, sampler, batches=batches, groups=groups, group_size=group_size, seed=0
            )
            table.setdefault(name, {})[sampler] = compare(
                gradients, exact[sampler], groups=groups, group_size=group_size, forwards=forwards
            )
            on_done()
    return table


def oracle_methods() -> dict[str, Method]:
    """Every method with its paper's settings, fitted to three tokens in three steps; DiSPO on each of its bases."""
    from unmask.methods import MDPO, METHODS, DiSPO, JustGRPO, TraceRL
    from unmask.methods.dispo import BASES

    methods: dict[str, Method] = {name: method() for name, method in METHODS.items() if name != "dispo"}
    methods["mdpo"] = MDPO(steps=LENGTH)
    methods["tracerl"] = TraceRL(shrink=1, lowest=0.0, highest=1.0)
    methods |= {f"dispo on {name}": DiSPO(base=base()) for name, base in BASES.items()}
    methods["just-grpo"] = replace(JustGRPO(), fraction=1.0)
    return methods
