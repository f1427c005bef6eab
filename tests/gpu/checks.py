"""Checks of a device: the same tokens and gradients as on the CPU, no host wait within a block, training steps.

Each takes the device's name and tells whether it holds; test_device.py runs them on a GPU, the cheap ones on the CPU
too.
"""

from __future__ import annotations

import copy
from functools import partial
from unittest.mock import patch

import torch
from torch import distributed

from unmask.denoisers.head.log_prob import linear_logp
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.denoisers.head.workspace import Workspace
from unmask.denoisers.layers.compiled import compile_layers
from unmask.denoisers.loading import load_denoiser
from unmask.distributed import World
from unmask.distributed.sharding import shard, shard_mesh
from unmask.sampling.block import Block
from unmask.sampling.caching import CACHINGS
from unmask.sampling.proposals import Propose
from unmask.sampling.records import EveryStep, OneStep
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import probability
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer
from unmask.types import Prompts
from unmask.uniforms import Uniforms

SMALL = {
    "rollout": {"prompts": 8, "num_generations": 4, "temperature": 1.4},
    "train": {"max_steps": 3, "examples": 64, "num_iterations": 2},
    "evaluation": {"examples": 16, "examples_during": 8},
}


def uniforms_agree(device: str) -> bool:
    """Keyed draws are the same bits on every device."""
    words = torch.arange(10_000)
    return torch.equal(Uniforms().key(words).draw(), Uniforms().key(words.to(device)).draw().cpu())


def samples_agree(device: str, caching: str = "none", *, compiled: bool = False) -> bool:
    """At least 99 % of completions are the same (a draw within rounding of a boundary may fall on its other side)."""
    tokens = torch.randint(0, 5, (256, 16), generator=torch.Generator().manual_seed(0))
    count = torch.arange(len(tokens))
    sampler = Sampler(max_new_tokens=16, block_length=8, steps=8, temperature=1.0, batch=100, caching=CACHINGS[caching])
    results = []
    for place in ("cpu", device):
        denoiser = load_denoiser("embedded:sudoku").to(place).eval()
        if compiled and place == device:
            compile_layers(denoiser)
        prompts = Prompts(
            tokens_NP=tokens.to(place),
            attention_NP=torch.ones_like(tokens, dtype=torch.bool).to(place),
            prompt_N=count.to(place),
            sample_N=torch.zeros_like(count).to(place),
        )
        results.append(sampler(denoiser, prompts, Uniforms().key(1)).tokens_NL.cpu())
    return bool((results[0] == results[1]).all(1).float().mean() >= 0.99)


def block_never_waits(device: str) -> bool:
    """Within a block no value is read back, nor a list copied to the GPU, whatever is recorded and cached."""
    whole, blocks = Block.denoise, 0

    def watched(block: Block) -> None:
        nonlocal blocks
        blocks += 1
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")  # PyTorch then raises where the host would wait
        try:
            whole(block)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    tokens = torch.randint(0, 5, (8, 16), generator=torch.Generator().manual_seed(0)).to(device)
    count = torch.arange(8, device=device)
    padded = torch.arange(16, device=device) >= count[:, None]
    prompts = Prompts(tokens_NP=tokens, attention_NP=padded, prompt_N=count // 2, sample_N=count % 2)
    denoiser = load_denoiser("embedded:sudoku").to(device).eval()
    with patch.object(Block, "denoise", watched):
        for caching in CACHINGS.values():
            sampler = Sampler(max_new_tokens=16, block_length=8, steps=8, temperature=1.0, caching=caching)
            for record in (None, OneStep(degree=0.0), *([EveryStep()] if caching is None else [])):
                sampler(denoiser, prompts, Uniforms().key(1), record, group_size=2)
    return blocks > 0


def gradients_agree(device: str) -> bool:
    """The head's written-out gradient, in one piece and in chunks, is the CPU's to 1e-4 of its largest entry."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(600, 64, generator=generator), torch.randn(40_000, 64, generator=generator) / 8
    targets = torch.randint(40_000, (600, 2), generator=generator)
    results = []
    for place in ("cpu", device):
        head = torch.nn.Linear(64, 40_000, bias=False, device=place)
        head.weight.data = weight.to(place)
        leaf = hidden.to(place).requires_grad_()
        for grad_logp in (None, lambda logp, chunk: 2 * logp):
            logp = linear_logp(leaf, head.weight, targets.to(place), grad_logp=grad_logp)
            results.append([each.cpu() for each in torch.autograd.grad(logp.square().sum(), (leaf, head.weight))])
    return all(
        bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())
        for result in results[1:]
        for ours, theirs in zip(result, results[0], strict=True)
    )


def layers_agree(device: str, dtype: torch.dtype, within: float) -> bool:
    """Hidden states of our layers, their gradients too, are those of transformers' own, relative to their size."""
    network = load_denoiser("embedded:sudoku").model.base_model.to(device, dtype)
    tokens = torch.arange(8 * 33, device=device).view(8, 33) % network.config.vocab_size
    results = []
    for options in ({"query_columns": torch.arange(33, device=device).expand(8, -1)}, {}):
        hidden = network(input_ids=tokens, use_cache=False, **options).last_hidden_state
        grads = torch.autograd.grad(hidden.float().sin().sum(), list(network.parameters()))
        with torch.no_grad():  # where some of it is written over
            again = network(input_ids=tokens, use_cache=False, **options).last_hidden_state
        results.append([hidden.detach(), again, *grads])
    return all(bool((ours - theirs).norm() <= within * theirs.norm()) for ours, theirs in zip(*results, strict=True))


def logp_agrees(device: str, dtype: torch.dtype, within: float) -> bool:
    """Log-probs, and the gradient of their mean, are the CPU's in float32 to `within`, relative to their size."""
    results = []
    for place, kind in (("cpu", torch.float32), (device, dtype)):
        denoiser = load_denoiser("embedded:sudoku").to(place, kind).eval()
        results.append([each.float().cpu() for each in _logp_and_gradient(denoiser, place)])
    return all(bool((ours - theirs).norm() <= within * theirs.norm()) for theirs, ours in zip(*results, strict=True))


def _logp_and_gradient(denoiser, place: str) -> list[torch.Tensor]:
    tokens = torch.randint(0, 5, (4, 32), generator=torch.Generator().manual_seed(0)).to(place)
    columns = torch.arange(16, 32, device=place).expand(4, -1)
    masked = tokens.index_fill(1, columns[0], denoiser.mask_id)
    (logp,) = denoiser(masked, None, columns, TargetLogProb(tokens[:, 16:].reshape(-1, 1)))
    logp.mean().backward()
    return [logp.detach(), *(weight.grad for weight in denoiser.parameters() if weight.ndim > 1)]


def one_shard_agrees(device: str, dtype: torch.dtype, within: float) -> bool:
    """Sharded on one rank, weights gathered in `dtype`: log-probs and gradients are those of a network in it."""
    whole = load_denoiser("embedded:sudoku").to(device).eval()
    sharded = copy.deepcopy(whole)
    expected = _logp_and_gradient(whole.to(dtype), device)
    started = not distributed.is_initialized()
    try:
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        shard(sharded, sharded.model.base_model.layers, shard_mesh(World.single(device), 1), precision)
        logp, *gradients = _logp_and_gradient(sharded, device)
        found = [logp, *(each.to_local() for each in gradients)]
    finally:
        if started and distributed.is_initialized():
            distributed.destroy_process_group()
    return all(
        bool((ours.float() - theirs.float()).norm() <= within * theirs.float().norm())
        for ours, theirs in zip(found, expected, strict=True)
    )


def half_precision_draws_exact(device: str) -> bool:
    """Draws from a large head in bf16 have the entropy of the exact softmax of its logits, within 0.02 nats."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 16, generator=generator).bfloat16().to(device)
    weight = torch.randn(126_464, 16, generator=generator).div(2).bfloat16().to(device)
    probability_V = (hidden @ weight.t()).double().softmax(1)
    entropy = float(-(probability_V * probability_V.log()).sum())
    uniform = Uniforms().key(torch.arange(100_000, device=device)[None]).draw()
    propose = Propose(
        temperature=1.0, mask_id=0, measure=probability, uniform_QZ=uniform, draws=100_000, stride=100_000
    )
    head = torch.nn.Linear(16, len(weight), bias=False, device=device)
    head.weight.data = weight
    with torch.no_grad():
        _, logp, _ = propose.from_head(hidden, head, Workspace())
    return abs(float(-logp.double().mean()) - entropy) < 0.02


def training_runs(device: str, precision: str, methods: tuple[str, ...] = ("diffu-grpo", "mdpo", "dispo")) -> bool:
    """Two training steps of each method, on `device`, give finite losses and gradients.

    In a process of its own it leaves nothing behind on the device.
    """
    for method in methods:
        train = SMALL["train"] | {"precision": precision}
        trainer = build_trainer(build(Recipe, SMALL | {"method": {"name": method}, "train": train}))
        if trainer.objective.world.device.type != device:
            return False
        for step in range(2):
            metrics, _ = trainer.step(step)
            if not 0 < metrics["grad_norm"] < float("inf"):
                return False
    return True


CHEAP = {  # on the CPU in a few seconds
    "uniforms_agree": uniforms_agree,
    "samples_agree": samples_agree,
    "samples_agree, dual cache": partial(samples_agree, caching="dual"),
    "samples_agree, delayed dual cache": partial(samples_agree, caching="dual_delayed"),
    "block_never_waits": block_never_waits,
    "gradients_agree": gradients_agree,
    "layers_agree, float32": partial(layers_agree, dtype=torch.float32, within=1e-4),
    "layers_agree, bf16": partial(layers_agree, dtype=torch.bfloat16, within=0.15),
    "logp_agrees, float32": partial(logp_agrees, dtype=torch.float32, within=1e-3),
    "logp_agrees, bf16": partial(logp_agrees, dtype=torch.bfloat16, within=0.15),
    "one_shard_agrees, float32": partial(one_shard_agrees, dtype=torch.float32, within=1e-4),
    "one_shard_agrees, bf16": partial(one_shard_agrees, dtype=torch.bfloat16, within=0.1),
    "half_precision_draws_exact": half_precision_draws_exact,
}
COSTLY = {"samples_agree, compiled layers": partial(samples_agree, compiled=True)}
