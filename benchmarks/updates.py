"""Updates, forward and backward: gradients of a loss, ours and by published arithmetic on the same masked inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import plain
from batches import diffu_grpo_batch, rollout_of, scoring_batch_of, update_batch
from core import Build, Case, Comparison, Verdict, logits_megabytes
from peer_updates import d1_loss, mdpo_loss, spg_loss, spg_masked, tracerl_loss
from peers import Checkouts
from toy import PeerView, Sizes, toy_denoiser
from unmask.methods import MDPO, SPG, DiffuGRPO, TraceRL
from unmask.objective import likelihood
from unmask.objective.objective import Objective, UpdateBatch
from unmask.training.update import Updater
from unmask.types import ScoringBatch
from unmask.uniforms import Uniforms

LARGE = Sizes(vocabulary=126_464, rows=6, prompt=128, completion=64)  # LLaDA's vocabulary: head-heavy
SMALL = Sizes(vocabulary=2_048, rows=6, prompt=128, completion=256)  # its share of head and body; published lengths
_TOLERANCE = 1e-5  # of a gradient, relative to the largest entry of each parameter's
_LOGITS = 64.0  # MB: one chunk of logits
_PROMPT_MASK = 0.15
_ADVANTAGES = (0.5, -0.5, 0.75, -0.25, -0.75, 0.25)  # advantages of the six samples

Loss = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """What our update must reach beside a baseline: ratio of times, extra memory in MB."""

    at_least: float | None
    memory_limit: float | None = None


class Bench:
    """One group of samples of one prompt, a policy on the toy, and the toy as peers call it."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.denoiser = sizes, toy_denoiser(sizes)
        self.network = PeerView(self.denoiser)
        generator = torch.Generator().manual_seed(2)
        prompt_P = torch.randint(sizes.eos_id, (sizes.prompt,), generator=generator)
        completion_NC = torch.randint(sizes.eos_id, (sizes.rows, sizes.completion), generator=generator)
        self.tokens_NL = torch.cat([prompt_P.expand(sizes.rows, -1), completion_NC], dim=1)
        self.region_L = torch.arange(self.tokens_NL.shape[1]) >= sizes.prompt
        self.advantage_N = torch.tensor(_ADVANTAGES)
        self.uniform_NL = torch.rand(self.tokens_NL.shape, generator=generator)  # for masks, confidences, old scores
        self.optimizer = torch.optim.SGD(list(self.denoiser.parameters()))
        self.objective = Objective(terms=(), denoiser=self.denoiser)  # benchmarks bring update batches of their own

    def clear(self) -> None:
        """No gradients, as before an update."""
        self.optimizer.zero_grad(set_to_none=True)

    def theirs(self, loss: Loss) -> Callable[[], None]:
        """The update that a loss makes by autograd."""

        def update() -> None:
            self.clear()
            loss().backward()

        return update

    def ours(self, update_batch: UpdateBatch) -> Callable[[], None]:
        """Our update."""

        def update() -> None:
            self.clear()
            for loss in self.objective.losses([update_batch]):
                loss.backward()

        return update

    def gradients(self, update: Callable[[], Any]) -> dict[str, Tensor]:
        """Of every parameter, after the update; zeros where there is none."""
        self.clear()
        update()
        named = dict(self.denoiser.model.named_parameters())
        found = {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in named.items()}
        self.clear()
        return found

    def exact_gradients(self, update: Callable[[], Any]) -> dict[str, Tensor]:
        """The same in float64."""
        self.denoiser.double()
        found = self.gradients(update)
        self.denoiser.float()
        return found

    def compared(self, name: str, theirs: Callable[[], None], ours: Callable[[], Any]) -> Verdict:
        """Gradients of both in float64, and what float32 makes of either; or none on either side."""
        true = self.exact_gradients(theirs)
        if not any(bool(gradient.any()) for gradient in true.values()):
            nothing = not any(bool(gradient.any()) for gradient in self.gradients(ours).values())
            text = "no gradient on either side" if nothing else "gradient on our side alone"
            return Verdict(text=text, holds=nothing)
        # Norms of the published networks are float32 even in float64.
        exact = _error(self.exact_gradients(ours), true)
        rounded, their_rounded = (_error(self.gradients(update), true) for update in (ours, theirs))
        text = f"gradients within {exact:.0e} in float64, {rounded:.0e} in float32 ({name} {their_rounded:.0e})"
        return Verdict(text=text, holds=exact <= _TOLERANCE and rounded <= max(_TOLERANCE, 2 * their_rounded))

    def case(self, name: str, theirs: Callable[[], None], ours: Callable[[], Any], bars: Bars) -> Case:
        """The comparison of two updates."""

        def check(_outputs: Mapping[str, Any]) -> Verdict:
            return self.compared(name, theirs, ours)

        row = Comparison(
            variant="ours", baseline=name, at_least=bars.at_least, equal=check, memory_limit=bars.memory_limit
        )
        return Case(
            calls={name: theirs, "ours": ours},
            comparisons=(row,),
            megabytes=lambda call: logits_megabytes(
                call, self.sizes.vocabulary, self.denoiser.model.config.hidden_size
            ),
        )


def _error(found: dict[str, Tensor], true: dict[str, Tensor]) -> float:
    """The largest difference in any parameter, relative to the largest entry of that parameter's gradient."""
    return max(
        float((found[name] - gradient).abs().max()) / max(float(gradient.abs().max()), 1e-30)
        for name, gradient in true.items()
    )


# ---- masked inputs ----


def fully_masked(bench: Bench, *, shared: bool) -> ScoringBatch:
    """Completions masked, and prompt tokens with probability 0.15; `shared`: alike in the group, one forward."""
    draw_NL = bench.uniform_NL[:1].expand_as(bench.uniform_NL) if shared else bench.uniform_NL
    masked_NL = bench.region_L | (draw_NL < _PROMPT_MASK)
    inputs_NL = bench.tokens_NL.masked_fill(masked_NL, bench.sizes.mask_id)
    scored_NL = bench.region_L.expand_as(inputs_NL)
    if not shared:
        return scoring_batch_of(inputs_NL, bench.tokens_NL, scored_NL, bench.advantage_N)
    zero_R = torch.zeros(len(inputs_NL), dtype=torch.long)
    return scoring_batch_of(inputs_NL[:1], bench.tokens_NL, scored_NL, bench.advantage_N, forward_R=zero_R)


def half_masked(bench: Bench) -> tuple[Tensor, Tensor]:
    """States in mid-trajectory: half of each completion masked; inputs [N, L] and what is masked."""
    half = bench.sizes.completion // 2
    place_NH = bench.uniform_NL[:, bench.sizes.prompt :].argsort(1)[:, :half] + bench.sizes.prompt
    masked_NL = torch.zeros(bench.tokens_NL.shape, dtype=torch.bool).scatter(1, place_NH, True)
    return bench.tokens_NL.masked_fill(masked_NL, bench.sizes.mask_id), masked_NL


# ---- cases ----


def diffu_grpo(peers: Checkouts, sizes: Sizes, bars: Bars, *, shared: bool) -> Case:
    """d1's compute_loss; where the group shares its prompt mask, d1 runs equal inputs six times, ours one."""
    bench = Bench(sizes)
    batch = fully_masked(bench, shared=shared)
    loss = d1_loss(peers, bench.network, batch, sizes)
    return bench.case("d1", bench.theirs(loss), bench.ours(diffu_grpo_batch(batch)), bars)


def equal_rewards(peers: Checkouts, sizes: Sizes, bars: Bars) -> Case:
    """A group of equal rewards: nothing to learn, no pass of ours."""
    bench = Bench(sizes)
    bench.advantage_N.zero_()
    loss = d1_loss(peers, bench.network, fully_masked(bench, shared=False), sizes)
    return bench.case("d1", bench.theirs(loss), equal_rewards_update(bench), bars)


def equal_rewards_update(bench: Bench) -> Callable[[], Any]:
    """Our whole update after rewards that are all the same, batch and all."""
    terms, rewards = DiffuGRPO(beta=0.0, epsilon=0.5).terms(bench.sizes.eos_id), torch.ones(1, bench.sizes.rows)
    rollout = rollout_of(bench.tokens_NL, bench.sizes)
    objective = Objective(terms=terms, denoiser=bench.denoiser)
    updater = Updater(objective=objective, optimizer=bench.optimizer, max_grad_norm=1.0)

    def update() -> None:
        (update_batches,) = objective.prepare(rollout, [rewards], Uniforms())
        updater.update(update_batches, learning_rate=1e-3)

    return update


def branches(peers: Checkouts, sizes: Sizes, bars: Bars) -> Case:
    """DiSPO's branches: three states filled twice each; d1's arithmetic runs each fill, ours each state."""
    bench = Bench(sizes)
    inputs_FL, masked_FL = (each[::2] for each in half_masked(bench))
    state_R = torch.arange(sizes.rows) // 2
    targets_RL = torch.where(masked_FL[state_R], bench.tokens_NL, inputs_FL[state_R])
    batch = scoring_batch_of(inputs_FL, targets_RL, masked_FL[state_R], bench.advantage_N, forward_R=state_R)
    loss = d1_loss(peers, bench.network, batch, sizes)
    return bench.case("d1's arithmetic", bench.theirs(loss), bench.ours(diffu_grpo_batch(batch)), bars)


def mdpo(peers: Checkouts, sizes: Sizes, bars: Bars) -> Case:
    """MDPO's compute_loss at one step of six trajectories."""
    bench = Bench(sizes)
    inputs_NL, masked_NL = half_masked(bench)
    count = sizes.completion // 2
    # The published code divides by the masked tokens of the micro-batch, and by each sample's, plus 1e-4.
    advantage_U = bench.advantage_N * sizes.completion / (count + 1e-4)
    normalizer = torch.tensor(sizes.rows + 1e-4 / count)
    batch = scoring_batch_of(
        inputs_NL, bench.tokens_NL, masked_NL, advantage_U, token_weight_RL=bench.uniform_NL * masked_NL / count
    )
    (term,) = MDPO(beta=0.0, epsilon=0.2).terms(0)
    loss = mdpo_loss(peers, bench.network, batch, bench.advantage_N, bench.uniform_NL, sizes)
    return bench.case("MDPO", bench.theirs(loss), bench.ours(update_batch(term, batch, normalizer)), bars)


def spg(peers: Checkouts, sizes: Sizes, bars: Bars) -> Case:
    """SPG's compute_loss on two block-random batch a sample, mixture of bounds."""
    bench = Bench(sizes)
    inputs_NRL = spg_masked(peers, bench.tokens_NL, sizes)
    inputs_FL = inputs_NRL.flatten(0, 1)
    sample_R = torch.arange(sizes.rows).repeat_interleave(inputs_NRL.shape[1])
    scored_RL = (inputs_FL == sizes.mask_id) & bench.region_L
    batch = scoring_batch_of(
        inputs_FL,
        bench.tokens_NL[sample_R],
        scored_RL,
        bench.advantage_N,
        unit_R=sample_R,
        token_weight_RL=scored_RL / (scored_RL.sum(1, keepdim=True) / sizes.completion),
        length_U=torch.full((sizes.rows,), sizes.completion),
    )
    (term,) = SPG(num_masks=2, beta=1.5, mix=0.5).terms(0)
    loss = spg_loss(peers, bench.network, bench.tokens_NL, bench.advantage_N, sizes)
    return bench.case(
        "SPG", bench.theirs(loss), bench.ours(update_batch(term, batch, likelihood.token_count(batch))), bars
    )


def tracerl(peers: Checkouts, sizes: Sizes, bars: Bars) -> Case:
    """TraceRL's forward_process on six rows: half masked, half of that scored; old scores of older weights."""
    bench = Bench(sizes)
    inputs_NL, masked_NL = half_masked(bench)
    median_N1 = bench.uniform_NL.where(masked_NL, torch.nan).nanmedian(1, keepdim=True).values
    scored_NL = masked_NL & (bench.uniform_NL < median_N1)
    with torch.no_grad():
        unweighted = scoring_batch_of(inputs_NL, bench.tokens_NL, scored_NL, bench.advantage_N)
        old_NL = likelihood.row_logp(bench.denoiser, unweighted) + 0.2 * (bench.uniform_NL - 0.5) * scored_NL
    batch = replace(unweighted, token_weight_RL=scored_NL / scored_NL.sum(1, keepdim=True))
    (term,) = TraceRL(epsilon=0.2, beta=0.01).terms(0)
    ours = update_batch(term, batch, likelihood.unit_count(batch), old_NL)
    loss = tracerl_loss(peers, bench.network, batch, old_NL)
    return bench.case("TraceRL", bench.theirs(loss), bench.ours(ours), bars)


def against_plain(sizes: Sizes, bars: Bars, *, shared: bool) -> Case:
    """The plain update, a forward a row."""
    bench = Bench(sizes)
    batch = fully_masked(bench, shared=shared)
    loss = partial(plain.update_loss, bench.network, batch, 0.5)
    return bench.case("plain", bench.theirs(loss), bench.ours(diffu_grpo_batch(batch)), bars)


def peer_cases(peers: Checkouts) -> dict[str, Build]:
    """The cases of a full run."""
    cases: dict[str, Build] = {}
    for sizes, general, together, others, limit in (
        (LARGE, 1.8, 7.0, 1.8, _LOGITS),
        (SMALL, 1.0, 5.7, 1.0, None),
    ):
        name = f"update V={sizes.vocabulary}"
        first = Bars(at_least=general, memory_limit=limit)
        cases[f"{name} diffu-GRPO"] = partial(_built, diffu_grpo, peers, sizes, first, shared=False)
        one = replace(first, at_least=together)
        cases[f"{name} diffu-GRPO, shared prompt mask"] = partial(_built, diffu_grpo, peers, sizes, one, shared=True)
        for method, build in {"MDPO": mdpo, "SPG": spg, "TraceRL": tracerl, "DiSPO branches": branches}.items():
            cases[f"{name} {method}"] = partial(_built, build, peers, sizes, Bars(at_least=others, memory_limit=limit))
        cases[f"{name} equal rewards"] = partial(_built, equal_rewards, peers, sizes, Bars(at_least=50.0))
    published = replace(LARGE, prompt=SMALL.prompt, completion=SMALL.completion)
    name = f"update V={LARGE.vocabulary} diffu-GRPO, prompts of 128 and 256 tokens"
    cases[name] = partial(_built, diffu_grpo, peers, published, Bars(at_least=None), shared=False)
    return cases


def plain_cases() -> dict[str, Build]:
    """The cases of the short form."""
    large, small = replace(LARGE, vocabulary=32_768, prompt=64), replace(SMALL, prompt=64, completion=128)
    return {
        "update V=32768": partial(_built, against_plain, large, Bars(at_least=None), shared=False),
        "update V=32768, shared prompt mask": partial(_built, against_plain, large, Bars(at_least=None), shared=True),
        "update V=2048": partial(_built, against_plain, small, Bars(at_least=None), shared=False),
        "update V=2048, shared prompt mask": partial(_built, against_plain, small, Bars(at_least=None), shared=True),
    }


def _built(build: Callable[..., Case], *arguments: Any, **options: Any) -> Case:
    """An update has no steps that a brief run could leave out: the last argument of a `Build` goes unread."""
    *rest, _brief = arguments
    return build(*rest, **options)
