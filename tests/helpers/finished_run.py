"""The directory of a run as it is when its last checkpoint is written, made without training."""

import json
from pathlib import Path

import tomli_w
import torch

from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.distributed import World
from unmask.settings.reader import build, document_of
from unmask.settings.recipe import Recipe
from unmask.training.checkpoint import save_checkpoint
from unmask.training.contents import Contents
from unmask.training.saving import Saving

STEPS = 2
EVALUATION = {"eval/greedy_16/solved": 0.75, "eval/greedy_16/solved_low": 0.3, "eval/greedy_16/solved_high": 0.95}


def moved_adapters(denoiser, rank, alpha):
    """Adapters that say something."""
    add_adapters(denoiser, rank, alpha)
    generator = torch.Generator().manual_seed(1)
    for weight in denoiser.parameters():
        if weight.requires_grad:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)


def finished_run(directory: Path, *, lora_rank=0, document=None) -> Path:
    """A run of the embedded Sudoku model, `document` more of its recipe; its weights are those it began with."""
    train = {"max_steps": STEPS, "lora_rank": lora_rank} | ({"lora_alpha": 8} if lora_rank else {})
    recipe = build(Recipe, {"train": train} | (document or {}))
    directory.mkdir()
    (directory / "recipe.toml").write_text(tomli_w.dumps(document_of(recipe)))
    rows = [{"step": 0, **EVALUATION}, *({"step": step, "reward": 0.5} for step in (1, 2)), {"step": 2, **EVALUATION}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    denoiser, tokenizer = load_denoiser("embedded:sudoku"), load_tokenizer("embedded:sudoku")
    if lora_rank:
        moved_adapters(denoiser, lora_rank, 8)
    optimizer = torch.optim.AdamW([weight for weight in denoiser.parameters() if weight.requires_grad])
    contents = Contents(denoiser=denoiser, tokenizer=tokenizer, optimizer=optimizer)
    with Saving() as saving:
        for step in range(1, STEPS + 1):
            save_checkpoint(directory / "checkpoints", step, contents, {}, saving, World.single())
    return directory


def summarise(directory: Path) -> None:
    """Write the summary that a run ends with."""
    rate = {"solved": 0.75, "solved_low": 0.3, "solved_high": 0.95}
    figures = {"before": rate | {"solved": 0.5}, "after": rate, "gain": 0.25, "gain_low": -0.1, "gain_high": 0.5}
    (directory / "summary.json").write_text(json.dumps({"method": "dispo", "steps": STEPS, "greedy_16": figures}))
