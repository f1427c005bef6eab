"""One completion, shown as it is filled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.data.example import Example
from unmask.data.examples import Examples, rollout_texts
from unmask.data.tokenization import token_texts
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.distributed import best_device
from unmask.errors import UserError
from unmask.report.denoising import Frame, print_denoising, with_one_end
from unmask.report.progress import advance, phase
from unmask.settings.commands import SampleSettings
from unmask.uniforms import Uniforms


def show_sample(settings: SampleSettings) -> None:
    """Complete the prompt, or a held-out item of the task where it is unset, and print every denoising step."""
    from unmask.report.terminal import OutputConsole, terminal_console

    with phase(f"loading {settings.model}"):
        tokenizer = load_tokenizer(settings.model)
        denoiser = load_denoiser(settings.model, model_format=settings.model_format).to(best_device()).eval()
    item = _item(settings)
    sampler = settings.rollout.sampler(settings.task, temperature=settings.temperature)
    room = denoiser.max_length - sampler.max_new_tokens
    examples = Examples.of([item], tokenizer, denoiser.eos_id, room, settings.chat, denoiser.other_end_ids)
    canvases: list[Tensor] = []

    def watch(canvas: Tensor) -> None:
        canvases.append(canvas[0, -sampler.max_new_tokens :].clone())
        advance()

    with phase("sampling", settings.steps):
        rollout = sampler(
            denoiser,
            examples.prompts([0], 1, best_device()),
            Uniforms().key("show", settings.seed),
            watch=watch,
        )
    (text,) = rollout_texts(tokenizer, rollout, examples)
    known = item.columns and settings.task.verifies
    reward = float(settings.task.rewards([item.prompt], [text], **examples.columns([0], 1))[0]) if known else None
    frames = _frames(canvases, denoiser.mask_id, tokenizer)
    size = getattr(settings.task, "size", None)
    console = OutputConsole() if size is not None else terminal_console()
    if size is None:
        ends = (denoiser.eos_id, *denoiser.other_end_ids)
        frames = with_one_end(frames, [token in ends for token in canvases[-1].tolist()])
    print_denoising(frames, item.prompt, text, reward, console, columns=size)


def _item(settings: SampleSettings) -> Example:
    if settings.prompt is not None:
        return Example(prompt=settings.prompt, solution="", columns={})
    items = settings.task.examples("test", settings.item + 1, seed=1)
    if settings.item >= len(items):
        raise UserError(
            f"item {settings.item} does not exist: the task has {len(items)} held-out items, counted from 0"
        )
    return items[settings.item]


def _frames(canvases: list[Tensor], mask_id: int, tokenizer: Any) -> list[Frame]:
    """What each step left: its tokens, which are masked, which it revealed."""
    frames = []
    before = torch.full_like(canvases[0], mask_id)
    for step, canvas in enumerate(canvases):
        frames.append(
            Frame(
                step=step + 1,
                tokens=token_texts(tokenizer, canvas.tolist()),
                masked=(canvas == mask_id).tolist(),
                revealed=((canvas != mask_id) & (before == mask_id)).tolist(),
                confidence=None,
            )
        )
        before = canvas
    return frames
