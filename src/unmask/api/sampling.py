"""The call behind `Sampler.sample`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from unmask.api.batch import Batch, Prompts, examples_of
from unmask.api.model import Model
from unmask.data.examples import Examples
from unmask.denoisers.base import Denoiser
from unmask.errors import UserError
from unmask.sampling.records import Record
from unmask.settings.recipe import SamplerSettings
from unmask.uniforms import Uniforms


def sampled(
    settings: SamplerSettings,
    model: Model,
    prompts: Prompts,
    num_samples: int,
    seed: int | tuple[int, int],
    record: Record | None,
    numbers: Sequence[int] | None,
) -> Batch:
    """A batch of completions. See `Sampler.sample`."""
    length = settings.max_new_tokens or 0
    sampler, denoiser = settings.sampler_of(length), model.denoiser
    items = examples_of(prompts)
    room = denoiser.max_length - length
    examples = Examples.of(items, model.tokenizer, denoiser.eos_id, room, model.chat, denoiser.other_end_ids)
    rows = examples.prompts(range(len(items)), num_samples, model.device)
    if numbers is not None:
        if len(numbers) != len(items) or len(set(numbers)) < len(items):
            raise UserError(f"numbers are {list(numbers)!r:.60}: give a distinct one for each of {len(items)} prompts")
        keys = torch.tensor(numbers, device=model.device)
        rows = replace(rows, prompt_N=keys.repeat_interleave(num_samples))
    uniforms = key_of(seed)
    with _evaluating(denoiser), model.world.autocast():
        rollout = sampler(denoiser, rows, uniforms, record=record, group_size=num_samples)
    return Batch(rollout=rollout, examples=examples, uniforms=uniforms, tokenizer=model.tokenizer)


def key_of(seed: int | tuple[int, int]) -> Uniforms:
    """The key of the draws of a training step, (seed, step), as a run's are; a seed alone is its step 0."""
    first, step = seed if isinstance(seed, tuple) else (seed, 0)
    return Uniforms().key(first).key("iteration", step)


@contextmanager
def _evaluating(denoiser: Denoiser) -> Iterator[None]:
    """Dropout is off while completions are sampled; every module has its own mode again behind it."""
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
