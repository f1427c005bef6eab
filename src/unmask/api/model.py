"""A model to sample from and to train: a network with its tokenizer, loaded by name or handed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmask.data.chat import ChatSettings
from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.directories import check_new
from unmask.denoisers.loading import load_denoiser, load_tokenizer, save_denoiser
from unmask.denoisers.wrapping import wrapped
from unmask.distributed import World
from unmask.errors import UserError
from unmask.validation import one_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A masked diffusion language model with its tokenizer; made by `load_model`.

    `denoiser` answers p(token | canvas); `chat` says how prompts are rendered; `precision` how forwards compute.
    """

    denoiser: Denoiser
    tokenizer: Any
    chat: ChatSettings = field(default_factory=ChatSettings)
    precision: str = "fp32"

    @property
    def network(self) -> nn.Module:
        """The transformers model itself."""
        network: nn.Module = self.denoiser.model
        return network

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.denoiser.parameters()).device

    @property
    def world(self) -> World:
        """One process on that device."""
        return World.single(self.device, self.precision)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights that are trained, for an optimizer: all, or the adapters alone."""
        return (weight for weight in self.denoiser.parameters() if weight.requires_grad)

    def save(self, directory: str | Path) -> None:
        """Write it in the layout of transformers, adapters merged. Raises UserError where something lies there."""
        path = Path(directory)
        check_new(path)
        path.mkdir(parents=True, exist_ok=True)
        save_denoiser(self.denoiser, self.tokenizer, path)


def load_model(
    model: str | nn.Module = "embedded:sudoku",
    tokenizer: Any = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    precision: str = "fp32",
    lora_rank: int = 0,
    lora_alpha: int = 64,
    mask_token_id: int | None = None,
    logits_shift: bool = False,
    model_format: str | None = None,
    chat: ChatSettings | None = None,
) -> Model:
    """The model of a checkpoint's name (directory, org/name on the Hub, embedded:NAME), or of a network and tokenizer.

    A network of your own stays as it is, on its device and in its mode; `tokenizer` is then required, and `device`,
    `dtype` and `model_format` are not read. `logits_shift`: its output at i-1 predicts the token at i (Dream's).
    `precision`: "fp32", or "bf16" autocast. `lora_rank`: only low-rank adapters are trained.
    Raises UserError where the checkpoint or the network cannot be used.

        model = unmask.load_model("embedded:sudoku")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    """
    one_of("precision", precision, ("fp32", "bf16"))
    if isinstance(model, str):
        _refuse_given(model, tokenizer=tokenizer, logits_shift=logits_shift)
        found = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with without_bars():
            denoiser = load_denoiser(model, dtype, mask_token_id=mask_token_id, model_format=model_format)
        denoiser, tokenizer = denoiser.eval().to(found), load_tokenizer(model)
    else:
        if tokenizer is None:
            raise UserError(f"model is a {type(model).__name__} without its tokenizer: give tokenizer")
        unread = {"device": device, "model_format": model_format, "dtype": None if dtype == torch.float32 else dtype}
        _refuse_given(type(model).__name__, **unread)
        denoiser = wrapped(model, tokenizer, mask_token_id=mask_token_id, logits_shift=logits_shift)
    if lora_rank:
        add_adapters(denoiser, lora_rank, lora_alpha)
    return Model(denoiser=denoiser, tokenizer=tokenizer, chat=chat or ChatSettings(), precision=precision)


@contextmanager
def without_bars() -> Iterator[None]:
    """Within, transformers shows no progress bars, where it had shown some."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _refuse_given(model: str, **unread: Any) -> None:
    """Raise UserError for an argument that would not be read."""
    for name, value in unread.items():
        if value:
            raise UserError(f"{name} {value!r:.60} would not be read with model {model}: leave it out")
