"""What a small checkpoint is made of."""

import torch

from helpers.small import small_denoiser
from unmask.data.tokenization import task_tokenizer
from unmask.training.contents import Contents


def small_contents() -> Contents:
    """A small denoiser after an update."""
    denoiser, tokenizer = small_denoiser(), task_tokenizer("12")
    optimizer = torch.optim.AdamW(denoiser.parameters())
    sum(weight.sum() for weight in denoiser.parameters()).backward()
    optimizer.step()
    return Contents(denoiser=denoiser, tokenizer=tokenizer, optimizer=optimizer)
