"""Published samplers on a toy, each as `generate(prompts, temperature=...) -> tokens`; `peers` loads their code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from peers import Checkouts, as_self, fast_dllm_network, fast_dllm_samplers, load_functions
from plain import BLOCK
from toy import PeerView, Sizes
from unmask.denoisers.base import Denoiser

Generate = Callable[..., Tensor]

# our name of a cache -> their function
FAST_DLLM = {
    "none": "generate",
    "prefix": "generate_with_prefix_cache",
    "dual": "generate_with_dual_cache",
}


def _sizes(sizes: Sizes) -> dict[str, Any]:
    return {
        "steps": sizes.steps,
        "gen_length": sizes.completion,
        "block_length": BLOCK,
        "mask_id": sizes.mask_id,
    }


def llada_generate(
    peers: Checkouts, noise: Any = None, *, denoiser: Denoiser, network: PeerView, sizes: Sizes
) -> Generate:
    """LLaDA's generate.py; `noise` in place of its add_gumbel_noise."""
    path = peers.llada / "generate.py"
    own = ("get_num_transfer_tokens", "generate")
    if noise is None:
        functions = load_functions(path, "add_gumbel_noise", *own)
    else:
        functions = load_functions(path, *own, add_gumbel_noise=noise)
    return partial(functions.generate, network, **_sizes(sizes))


def d1_generate(peers: Checkouts, *, denoiser: Denoiser, network: PeerView, sizes: Sizes) -> Generate:
    """DiffuGRPOTrainer.generate of d1."""
    path = peers.d1 / "diffu-grpo" / "diffu_grpo_trainer.py"
    functions = load_functions(path, "generate", "add_gumbel_noise", "get_num_transfer_tokens")
    trainer = as_self(functions, args=SimpleNamespace(fp16=False))

    @torch.no_grad()
    def generate(prompt_NP: Tensor, temperature: float) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no CUDA here: its autocast does nothing, and says so each step
            return trainer.generate(network, prompt_NP, temperature=temperature, **_sizes(sizes))

    return generate


def mdpo_generate(peers: Checkouts, *, denoiser: Denoiser, network: PeerView, sizes: Sizes) -> Generate:
    """diffusion_generate of MDPO, written for a batch of one: a row at a time, as its trainer calls it."""
    helpers = load_functions(
        peers.mdpo / "src" / "llada" / "generate.py",
        "add_gumbel_noise",
        "gamma_func",
        "get_num_transfer_tokens_maskgit",
    )
    path = peers.mdpo / "src" / "mdlm_generation_utils.py"
    functions = load_functions(path, "diffusion_generate", "top_p_logits", "top_k_logits", **vars(helpers))

    def generate(prompt_NP: Tensor, temperature: float) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = partial(functions.diffusion_generate, network, conf_alg="probability", temperature=temperature)
            rows = [run(row_P[None], **_sizes(sizes))[0] for row_P in prompt_NP]
        return torch.cat([prompt_NP, torch.cat(rows)], dim=1)

    return generate


def dllm_rl_generate(peers: Checkouts, *, denoiser: Denoiser, network: PeerView, sizes: Sizes) -> Generate:
    """The rollout of dLLM-RL for LLaDA, its cache off."""
    functions = load_functions(
        peers.dllm_rl / "sample" / "llada_rl_rollout.py",
        "add_gumbel_noise",
        "get_num_transfer_tokens",
        "get_transfer_index",
        "generate_with_prefix_cache",
        DiffusionOutput=SimpleNamespace,
    )

    def generate(prompt_NP: Tensor, temperature: float) -> Tensor:
        return functions.generate_with_prefix_cache(
            network,
            prompt_NP,
            temperature=temperature,
            target="confidence",
            further_horizon=None,
            use_cache=False,
            unmask_threshold=None,
            **_sizes(sizes),
        ).sequences

    return generate


def fast_dllm_generate(
    peers: Checkouts,
    name: str,
    rows: int,
    threshold: float | None,
    *,
    denoiser: Denoiser,
    network: PeerView,
    sizes: Sizes,
) -> Generate:
    """One of Fast-dLLM's samplers on its own network, `rows` at a time."""
    theirs = fast_dllm_network(peers.fast_dllm, denoiser)
    run = partial(getattr(fast_dllm_samplers(peers.fast_dllm, rows), name), theirs, threshold=threshold)

    def generate(prompt_NP: Tensor, temperature: float) -> Tensor:
        parts = [run(part_NP, temperature=temperature, **_sizes(sizes))[0] for part_NP in prompt_NP.split(rows)]
        return torch.cat(parts)

    return generate
