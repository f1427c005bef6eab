"""Forwards of a rollout, step by step: an upper bound, as completions fill their length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from unmask.sampling.caching import CACHINGS
from unmask.sampling.columns import CanvasLayout, finished_columns, steps_with_masks, suffix_positions
from unmask.sampling.records import Record
from unmask.sampling.sampler import batch_multiple
from unmask.sampling.schedules import SCHEDULES
from unmask.settings.recipe import RolloutSettings
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class DenoisingForwards:
    """Forwards of a rollout with equally many query positions each."""

    forwards: int
    at_once: int  # of these, in one batch
    positions: int
    columns: int  # that are run; the others' keys and values come from the cache
    end: int  # columns before it are attended to
    tokens: int = 1  # drawn at each position


def step_counts(rollout: RolloutSettings, length: int) -> tuple[int, ...]:
    """Positions that each step of a block reveals; of an adaptive rule that reads no schedule, the fewest it may."""
    block = rollout.block_length or length
    if not rollout.unmasking.scheduled:
        return (1,) * block
    return SCHEDULES[rollout.schedule](block, rollout.steps // (length // block))


def block_offset(canvas: CanvasLayout) -> int:
    """Positions of the completion's first block that are the prompt's: those of a model's own begin with the prompt."""
    return canvas.start % canvas.block_length if canvas.block_causal else 0


def _most_blocks(canvas: CanvasLayout) -> int:
    """Blocks of a completion, at most, whatever the lengths of other prompts: as `Sampler` has them."""
    return canvas.completion // canvas.block_length + int(canvas.block_causal)


def _rows_of_steps(rollout: RolloutSettings, samples: int, alike: int) -> tuple[int, int, int]:
    """Rows of all samples' forwards, at most: in their first step, which those `alike` share; in a later one; at once.

    The sampler pads batches to a multiple; those that it refills have no first step in common.
    """
    size = min(samples, rollout.batch or samples)
    multiple = batch_multiple(size)
    padding = -size % multiple
    refilled = samples > size and (rollout.stop_at_end or samples % size > 0)
    later = -(-samples * (size + padding) // size) + (multiple - 1 if refilled else 0)
    shared = not refilled and not padding and size % alike == 0
    return samples // alike if shared else later, later, size + padding


def is_exact(rollout: RolloutSettings, canvas: CanvasLayout) -> bool:
    """Whether keys and values of earlier blocks are kept whatever is set, as `SamplingContext.exact_prefix_cache`."""
    return canvas.block_causal and not canvas.shift and not rollout.guidance_scale


def _window(
    rollout: RolloutSettings, canvas: CanvasLayout, *, block: int, index: int, masked_before: int
) -> tuple[int, int]:
    """Columns that a step of a block runs, and the end of those that it attends to: see `sampling.columns`."""
    length, caching = canvas.length, CACHINGS[rollout.caching]
    if is_exact(rollout, canvas):
        end = min(length, canvas.block_start(block + 1))
        done = block if index else block - 1
        return end - (finished_columns(canvas, done) if done >= 0 else 0), end
    if caching is None or index == 0:
        return length, length
    behind = length - canvas.block_start(block + 1) if caching.suffix else 0
    if caching.delayed:
        return min(length, masked_before * (2 if canvas.shift else 1) + behind), length
    return canvas.block_length + int(canvas.shift) + behind, length


def denoising_of(
    rollout: RolloutSettings, record: Record | None, samples: int, alike: int, canvas: CanvasLayout
) -> Iterator[DenoisingForwards]:
    """Forwards of each step of so many samples, of which `alike` neighbours begin alike.

    Query positions: what is masked in the block, and all that is masked where states are recorded.
    """
    length, whole = canvas.completion, {"columns": canvas.length, "end": canvas.length}
    counts, blocks = step_counts(rollout, length), _most_blocks(canvas)
    first, rows, at_once = _rows_of_steps(rollout, samples, alike)
    together = alike if first < rows else 1
    guesses = 0 if record is None or record.own else record.guesses
    wanted: Counter[int] = Counter()
    if record is not None:
        prompt_N = torch.arange(samples) // rollout.num_generations
        sample_N = torch.arange(samples) % rollout.num_generations
        block_NC = ((torch.arange(length) + block_offset(canvas)) // canvas.block_length).expand(samples, -1)
        masked_NS = steps_with_masks(block_NC, blocks, counts, remasks=rollout.unmasking.remasks)
        wanted.update(torch.cat(record.steps(Uniforms(), prompt_N, sample_N, masked_NS)).tolist())
    for step in range(len(counts) * blocks):
        block, index = divmod(step, len(counts))
        later = suffix_positions(canvas, block)
        masked, before = sum(counts[index:]), sum(counts[max(0, index - 1) :])
        here = not later and rollout.caching == "none"
        everything = step in wanted and record is not None and (record.own or here)
        columns, end = _window(rollout, canvas, block=block, index=index, masked_before=before)
        run = whole if everything else {"columns": columns, "end": end}
        anywhere = min(length, masked + later)
        positions = anywhere if everything else masked
        tokens = 1 + (guesses if everything else 0)
        if step == 0:
            drawn, most = tokens * together, at_once // together
            yield DenoisingForwards(forwards=first, at_once=most, positions=positions, tokens=drawn, **run)
        else:
            yield DenoisingForwards(forwards=rows, at_once=at_once, positions=positions, tokens=tokens, **run)
        if step in wanted and not everything:
            most, drawn = min(wanted[step], at_once), 1 + guesses
            yield DenoisingForwards(forwards=wanted[step], at_once=most, positions=anywhere, tokens=drawn, **whole)
