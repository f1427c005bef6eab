"""Rollouts: our sampler, and the published ones on the same network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import plain
from core import Build, Case, Check, Comparison, Verdict
from peer_samplers import (
    FAST_DLLM,
    d1_generate,
    dllm_rl_generate,
    fast_dllm_generate,
    llada_generate,
    mdpo_generate,
)
from peers import Checkouts
from toy import LIVELY, SURE, PeerView, Sizes, planted_ends, toy_denoiser, toy_prompts, with_planted_answers
from unmask.denoisers.layers.compiled import compile_layers
from unmask.sampling import reference
from unmask.sampling.caching import CACHINGS
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import Threshold
from unmask.uniforms import Uniforms

LARGE = Sizes(vocabulary=126_464, rows=6, prompt=128, completion=64, steps=8)  # LLaDA's vocabulary: head-heavy
SMALL = Sizes(vocabulary=2_048, rows=6, prompt=64, completion=128, steps=64)  # its share of head and body
FEW = replace(SMALL, rows=3, completion=64, steps=32)
LONG = replace(SMALL, completion=256, steps=64)
MEMORY_ROWS = 6  # where memory is measured
_UNIFORMS = Uniforms().key(17)
_SAME_PRODUCTS = 1.1  # bar where nine tenths of our time are products and attention that the other side makes as well


class Bench:
    """One toy, its prompts, and everybody's sampler on them: calls that return tokens [N, L]."""

    def __init__(
        self, sizes: Sizes, temperature: float, *, brief: bool, planted: bool = False, head_std: float = LIVELY
    ) -> None:
        if brief:  # a step a block: the first, which has most to do, shows the peak; of a batch worth the name
            sizes = replace(sizes, rows=MEMORY_ROWS, steps=sizes.completion // plain.BLOCK)
        self.sizes, self.temperature = sizes, temperature
        self.prompts, self.denoiser = toy_prompts(sizes), toy_denoiser(sizes, head_std)
        ends_N = planted_ends(sizes) if planted else None
        self.network = PeerView(self.denoiser, ends_N)
        if ends_N is not None:
            self.denoiser = with_planted_answers(self.denoiser, ends_N)

    def ours(self, **options: Any) -> Callable[[], Tensor]:
        """Our sampler with further options."""
        sampler = Sampler(
            max_new_tokens=self.sizes.completion,
            block_length=plain.BLOCK,
            steps=self.sizes.steps,
            temperature=self.temperature,
            **options,
        )
        return lambda: sampler(self.denoiser, self.prompts, _UNIFORMS).tokens_NL

    def compiled(self, **options: Any) -> Callable[[], Tensor]:
        """The same with `train.torch_compile`: a copy of the network whose layers are compiled at the first call."""
        denoiser = copy.deepcopy(self.denoiser)
        torch._dynamo.reset()  # graphs of other cases are of no use here
        compile_layers(denoiser)
        ours = self.ours(**options)

        def call() -> Tensor:
            kept, self.denoiser = self.denoiser, denoiser
            try:
                return ours()
            finally:
                self.denoiser = kept

        return call

    def plain(self) -> Callable[[], Tensor]:
        """The plain sampler."""
        return partial(
            plain.sample,
            self.network,
            self.prompts,
            _UNIFORMS,
            completion=self.sizes.completion,
            steps=self.sizes.steps,
            temperature=self.temperature,
            mask_id=self.sizes.mask_id,
        )

    def peer(self, make: Callable[..., Callable[..., Tensor]], *arguments: Any, **options: Any) -> Callable[[], Tensor]:
        """A peer's sampler, as `make` loads it."""
        generate = make(*arguments, denoiser=self.denoiser, network=self.network, sizes=self.sizes)
        return partial(generate, self.prompts.tokens_NP, temperature=self.temperature, **options)

    def keyed_noise(self) -> KeyedNoise:
        """Our draws, in place of a sampler's own noise."""
        return KeyedNoise(self)


class KeyedNoise:
    """What stands in for `add_gumbel_noise`: largest at the tokens that our keyed uniforms draw. One call a step."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.step = bench, 0

    def __call__(self, logits_NLV: Tensor, temperature: float) -> Tensor:
        sizes = self.bench.sizes
        uniform_NC = plain.keyed_uniforms(self.bench.prompts, _UNIFORMS, self.step, sizes.completion)
        self.step = (self.step + 1) % sizes.steps
        chosen_NLV = torch.zeros(logits_NLV.shape, dtype=torch.uint8)
        for row, uniform_C in enumerate(uniform_NC):
            drawn_C = reference.draw(logits_NLV[row, sizes.prompt :], uniform_C, temperature, sizes.mask_id)
            chosen_NLV[row, sizes.prompt :].scatter_(1, drawn_C[:, None], 1)
        return chosen_NLV


# ---- checks ----


def same_tokens(variant: str, baseline: str, sizes: Sizes, note: str = "") -> Check:
    """All tokens of the completions."""

    def check(outputs: Mapping[str, Tensor]) -> Verdict:
        ours, theirs = (outputs[name][:, sizes.prompt :] for name in (variant, baseline))
        equal = int((ours == theirs).sum())
        return Verdict(text=f"{equal}/{theirs.numel()} tokens {note}".strip(), holds=equal == theirs.numel())

    return check


def same_answers(variant: str, baseline: str, sizes: Sizes) -> Check:
    """The completions through their first end-of-sequence token."""

    def check(outputs: Mapping[str, Tensor]) -> Verdict:
        ours, theirs = (outputs[name][:, sizes.prompt :] for name in (variant, baseline))
        end = theirs == sizes.eos_id
        answer = (end.cumsum(1) - end.long()) == 0
        equal = int((ours == theirs)[answer].sum())
        share = float(answer.float().mean())
        text = f"{equal}/{int(answer.sum())} tokens through the first EOS ({share:.0%} long)"
        return Verdict(text=text, holds=equal == int(answer.sum()))

    return check


def own_noise(outputs: Mapping[str, Any]) -> Verdict:
    """Nothing to compare."""
    return Verdict(text="own noise: other draws")


# ---- cases ----


def against_llada(
    peers: Checkouts,
    sizes: Sizes,
    temperature: float,
    *,
    at_least: float | None,
    memory_share: float | None = None,
    others: bool = False,
    compiled: bool = False,
    brief: bool = False,
) -> Case:
    """Ours and LLaDA's; `others`: and those of RL code, for the table; `compiled`: ours with compiled layers, too."""
    bench = Bench(sizes, temperature, brief=brief)
    calls = {"LLaDA": bench.peer(llada_generate, peers), "ours": bench.ours()}
    checked = {}
    note = ""
    if temperature:
        checked["LLaDA"] = bench.peer(llada_generate, peers, bench.keyed_noise())
        note = "(LLaDA's noise replaced by our draws)"
    equal = same_tokens("ours", "LLaDA", sizes, note)
    rows = [Comparison(variant="ours", baseline="LLaDA", at_least=at_least, equal=equal, memory_share=memory_share)]
    if compiled:
        calls["ours, compiled"] = bench.compiled()
        equal = same_tokens("ours, compiled", "LLaDA", sizes, note)
        rows.append(Comparison(variant="ours, compiled", baseline="LLaDA", at_least=at_least, equal=equal))
    for name, make in {"d1": d1_generate, "MDPO": mdpo_generate, "dLLM-RL": dllm_rl_generate}.items() if others else ():
        calls[name] = bench.peer(make, peers)
        equal = own_noise if temperature else same_tokens(name, "LLaDA", sizes)
        rows.append(Comparison(variant=name, baseline="LLaDA", equal=equal, counts=False))
    return Case(calls=calls, comparisons=tuple(rows), checked=checked)


def planted_answers(peers: Checkouts, sizes: Sizes, *, brief: bool) -> Case:
    """Answers of 66 % of the generation: ours stops where they end, and says no more of those samples."""
    bench = Bench(sizes, 0.0, brief=brief, planted=True)
    calls = {
        "LLaDA": bench.peer(llada_generate, peers),
        "ours": bench.ours(stop_at_end=True),
        "ours, compiled": bench.compiled(stop_at_end=True),
        "ours, compiled, 3 at a time": bench.compiled(stop_at_end=True, batch=3),  # others begin where some are done
    }
    bars = {"ours": None, "ours, compiled": 1.7, "ours, compiled, 3 at a time": 1.7}
    rows = [
        Comparison(variant=name, baseline="LLaDA", at_least=bar, equal=same_answers(name, "LLaDA", sizes))
        for name, bar in bars.items()
    ]
    return Case(calls=calls, comparisons=tuple(rows))


def with_caches(
    peers: Checkouts, sizes: Sizes, caches: tuple[str, ...], threshold: float | None = None, *, brief: bool
) -> Case:
    """Fast-dLLM's samplers, published for a batch of one and run here for a batch, and ours of the same name.

    `threshold`: every proposal that is as probable is committed, by a network that often is as sure. Ours have a bar
    against Fast-dLLM's of the same name. Delayed forms, which that code does not have, stand beside LLaDA.
    """
    bench = Bench(sizes, 0.0, brief=brief, head_std=LIVELY if threshold is None else SURE)
    calls = {"LLaDA": bench.peer(llada_generate, peers)}
    unmasking = {} if threshold is None else {"unmasking": Threshold(threshold=threshold)}
    rows = []
    for cache in caches:
        kind = "without cache" if cache == "none" else f"with {cache} cache"
        theirs, ours = f"Fast-dLLM {kind}", f"ours {kind}"
        calls[theirs] = bench.peer(fast_dllm_generate, peers, FAST_DLLM[cache], sizes.rows, threshold)
        calls[ours] = bench.ours(caching=CACHINGS[cache], **unmasking)
        one = bench.peer(fast_dllm_generate, peers, FAST_DLLM[cache], 1, threshold)
        rows.append(Comparison(variant=theirs, baseline="LLaDA", equal=_as_row_by_row(theirs, one, sizes)))
        equal = same_tokens(ours, theirs, sizes)
        rows.append(Comparison(variant=ours, baseline=theirs, at_least=_SAME_PRODUCTS, equal=equal))
        bar = 4.7 if cache == "dual" else None
        rows.append(Comparison(variant=ours, baseline="LLaDA", at_least=None if threshold is None else bar))
        if cache != "none" and threshold is None:
            delayed = f"ours with delayed {cache} cache"
            calls[delayed] = bench.ours(caching=CACHINGS[f"{cache}_delayed"])
            rows.append(Comparison(variant=delayed, baseline="LLaDA", at_least=bar))
    return Case(calls=calls, comparisons=tuple(rows))


def _as_row_by_row(name: str, one: Callable[[], Tensor], sizes: Sizes) -> Check:
    """Their batched run against their code run as published, a row at a time."""

    def check(outputs: Mapping[str, Tensor]) -> Verdict:
        both = {name: outputs[name], "one": one()}
        return same_tokens(name, "one", sizes, "of its own run row by row")(both)

    return check


def against_plain(sizes: Sizes, temperature: float, memory_share: float | None = None, *, brief: bool) -> Case:
    """Ours and the plain sampler; the bars are equality and memory, for times are told and never tested."""
    bench = Bench(sizes, temperature, brief=brief)
    equal = same_tokens("ours", "plain", sizes)
    row = Comparison(variant="ours", baseline="plain", equal=equal, memory_share=memory_share)
    return Case(calls={"plain": bench.plain(), "ours": bench.ours()}, comparisons=(row,))


def peer_cases(peers: Checkouts) -> dict[str, Build]:
    """The cases of a full run."""
    return {
        "rollout V=126464 T=0": lambda brief: against_llada(
            peers, LARGE, 0.0, at_least=3.8, memory_share=0.1, brief=brief
        ),
        "rollout V=126464 T=1": lambda brief: against_llada(
            peers, LARGE, 1.0, at_least=12.0, memory_share=0.1, brief=brief
        ),
        "rollout V=2048 T=0": lambda brief: against_llada(
            peers, SMALL, 0.0, at_least=_SAME_PRODUCTS, compiled=True, brief=brief
        ),
        "rollout V=2048 T=0 of RL code": lambda brief: against_llada(
            peers, FEW, 0.0, at_least=None, others=True, brief=brief
        ),
        "rollout V=2048 T=1 of RL code": lambda brief: against_llada(
            peers, FEW, 1.0, at_least=None, others=True, brief=brief
        ),
        "rollout V=2048 T=0 256 tokens": lambda brief: planted_answers(peers, LONG, brief=brief),
        "rollout V=2048 T=0 without cache": lambda brief: with_caches(peers, FEW, ("none",), brief=brief),
        "rollout V=2048 T=0 caches": lambda brief: with_caches(peers, SMALL, ("prefix", "dual"), brief=brief),
        "rollout V=2048 T=0 threshold 0.9": lambda brief: with_caches(
            peers, SMALL, ("none", "prefix", "dual"), 0.9, brief=brief
        ),
    }


def plain_cases() -> dict[str, Build]:
    """The cases of the short form."""
    large = replace(LARGE, rows=2, prompt=64, completion=32)
    return {
        "rollout V=126464 T=0": lambda brief: against_plain(large, 0.0, 0.5, brief=brief),
        "rollout V=126464 T=1": lambda brief: against_plain(large, 1.0, 0.75, brief=brief),
        "rollout V=2048 T=0": lambda brief: against_plain(FEW, 0.0, brief=brief),
        "rollout V=2048 T=1": lambda brief: against_plain(FEW, 1.0, brief=brief),
    }
