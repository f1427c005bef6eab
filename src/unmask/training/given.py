"""What a run is given as Python objects, in the place of what its recipe can only name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask.denoisers.adapters import add_adapters, load_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.wrapping import load_weights
from unmask.errors import UserError
from unmask.settings.recipe import TrainSettings
from unmask.training.callbacks import Callback


@dataclass(frozen=True, kw_only=True)
class Given:
    """Objects of the Python that starts a run; of the command there are none.

    `denoiser` and `tokenizer` go in the place of the recipe's model, and `base`, of a run that goes on, is that model
    before it was trained. `reward_functions` are by their specs in reward.funcs. `owns_process`: as the command does,
    which may end it.
    """

    denoiser: Denoiser | None = None
    tokenizer: Any = None
    base: Denoiser | None = None
    reward_functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    owns_process: bool = True

    def trained(self, settings: TrainSettings, checkpoint: Path | None) -> Denoiser | None:
        """The given denoiser, to be trained: with adapters where wanted, with the weights of a checkpoint; or None."""
        if self.denoiser is None:
            return None
        if settings.four_bit or settings.param_dtype != "fp32":
            raise UserError("train.four_bit and train.param_dtype are of models that are loaded: give one by its name")
        if settings.lora_rank:
            add_adapters(self.denoiser, settings.lora_rank, settings.lora_alpha)
        if checkpoint is not None and settings.lora_rank:
            load_adapters(self.denoiser, checkpoint)
        elif checkpoint is not None:
            load_weights(self.denoiser, checkpoint)
        return self.denoiser


NOTHING_GIVEN = Given()
