"""A network that somebody else has made, as a denoiser: it is looked at and tried, and left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.loading import spelt_ids
from unmask.denoisers.plain import MASKED
from unmask.denoisers.probe import check_masks
from unmask.errors import UserError


def wrapped(network: Any, tokenizer: Any, *, mask_token_id: int | None = None, logits_shift: bool = False) -> Denoiser:
    """The denoiser of a network of transformers, whose forward, config and mode stay what they are.

    `mask_token_id`: where neither config nor tokenizer name one. `logits_shift`: the output at i-1 predicts the token
    at i. Raises UserError where the network is no denoiser, or mask or end token are unknown.
    """
    name, config = type(network).__name__, getattr(network, "config", None)
    if config is None or not hasattr(network, "base_model"):
        raise UserError(f"model is a {name}: give a causal language model of transformers, or a checkpoint's name")
    if getattr(config, "is_causal", None) is not False and config.model_type != MASKED:
        raise UserError(
            f"{name} attends causally: set config.is_causal = False before it is made if it is a masked diffusion model"
        )
    mask_id = mask_token_id
    if mask_id is None:
        mask_id = _token(config, tokenizer, "mask_token_id")
    eos_id = _token(config, tokenizer, "eos_token_id")
    if mask_id is None or not 0 <= mask_id < config.vocab_size:
        raise UserError(f"{name} has mask token {mask_id}: give mask_token_id, from 0 to {config.vocab_size - 1}")
    if eos_id is None:
        raise UserError(f"{name} names no end-of-sequence token: set eos_token_id in its config or its tokenizer")
    spelt, holes = spelt_ids(tokenizer, eos_id)
    denoiser = Denoiser(network, mask_id=mask_id, eos_id=eos_id, shift=logits_shift, spelt=spelt, holes=holes)
    denoiser.training = network.training
    check_masks(denoiser, name)
    return denoiser


def _token(config: Any, tokenizer: Any, key: str) -> int | None:
    """The id by the config, else by the tokenizer; of several the first."""
    for source in (config, tokenizer):
        value = getattr(source, key, None)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int):
            return value
    return None


def load_weights(denoiser: Denoiser, directory: Path) -> None:
    """Put the weights that `save_denoiser` wrote to a directory into a denoiser of the same network."""
    network = type(denoiser.model).from_pretrained(directory, use_safetensors=True, trust_remote_code=False)
    denoiser.model.load_state_dict(network.state_dict())


@contextmanager
def as_it_was(network: nn.Module) -> Iterator[None]:
    """Give a network back as it came, but for its weights: modes, what is trained, config, and how layers run."""
    before = [
        (module, module.training, vars(module).get("forward"), module._compiled_call_impl)
        for module in network.modules()
    ]
    trained = [(weight, weight.requires_grad) for weight in network.parameters()]
    config: dict[str, Any] = vars(network.config)
    config_before = dict(config)
    try:
        yield
    finally:
        for module, training, forward, compiled in before:
            module.training, module._compiled_call_impl = training, compiled
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward
        for weight, requires_grad in trained:
            weight.requires_grad_(requires_grad)
            weight.grad = None
        config.clear()
        config.update(config_before)
