"""What a network is tried for before it is trained: the same law under every mask, and no layer that stays causal."""

from __future__ import annotations

import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser, attention_window, mask_of
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.denoisers.layers.fast_layers import has_fast_layers
from unmask.errors import UserError

_LOG = logging.getLogger(__name__)

_TOKENS = 64  # of a probe at most
_FEW = 11  # tokens for each layer alone
_PADS = 5
_TARGETS = 4
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # nats
_COARSE = 0.5  # nats, for weights of fewer bits: rounding depends on the mask
_ROUNDING, _COARSE_ROUNDING = 1e-5, 0.02  # of a layer's outputs, as a share of the largest


def needs_trial(network: Any) -> bool:
    """Whether its forward must be seen before it is trained: networks with fast layers are known."""
    return not has_fast_layers(network) or attention_window(network.config) is not None


def check_masks(denoiser: Denoiser, model: str) -> None:
    """Raise UserError where a network's log-probs depend on how pads are masked, or a part of it stays causal.

    Networks that need no trial pass unseen.
    """
    if not needs_trial(denoiser.model):
        return
    window = attention_window(denoiser.model.config)
    if window is not None:
        _LOG.warning("model %r: windows of %d tokens are left out, all layers attend to all positions", model, window)
    try:
        causal = causal_parts(denoiser.model)
        nats = 0.0 if causal else mask_difference(denoiser)
    except Exception as error:
        raise UserError(
            f"model {model!r} does not run as a denoiser ({' '.join(str(error).split())[:120]}): "
            "use another architecture, such as llama, qwen2 or qwen3"
        ) from error
    if causal:
        raise UserError(
            f"model {model!r} cannot denoise: {', '.join(causal)} stays causal (recurrent or convolutional layers "
            "see what stands before alone): use a model whose layers all attend, such as llama, qwen2 or qwen3"
        )
    dtype = next(denoiser.parameters()).dtype
    if not nats <= _TOLERANCE.get(dtype, _COARSE):
        raise UserError(
            f"model {model!r} cannot be trained: its log-probs differ by {nats:.2g} nats with the masks of sampler and "
            "scorer, or with pads; use another architecture, such as llama, qwen2 or qwen3"
        )


@torch.no_grad()
def mask_difference(denoiser: Denoiser) -> float:
    """Largest difference in nats, over positions, of log-probs under no mask, the scorer's and the sampler's.

    Two rows, one with pads on the left, and each of them alone without any: what stands at pads must not count.
    """
    config, device = denoiser.model.config, next(denoiser.parameters()).device
    window = attention_window(config) or 0
    length = min(max(_TOKENS // 2, 2 * window), _TOKENS, denoiser.max_length)
    pads = min(_PADS, length // 2)
    tokens_L = torch.arange(length, device=device) % int(config.vocab_size)
    tokens_L[::3] = denoiser.mask_id
    padded_L = torch.cat([tokens_L.new_full((pads,), denoiser.eos_id), tokens_L[: length - pads]])
    tokens_FL = torch.stack([tokens_L, padded_L])
    attention_FL = torch.ones_like(tokens_FL, dtype=torch.bool)
    attention_FL[1, :pads] = False
    scorers, samplers = (_log_probs(denoiser, tokens_FL, mask) for mask in (attention_FL, mask_of(attention_FL)))
    whole = _log_probs(denoiser, tokens_FL[:1], None)
    alone = _log_probs(denoiser, tokens_FL[1:, pads:], None)
    real = attention_FL[..., None]
    masks, unmasked = (scorers - samplers).masked_fill(~real, 0.0), scorers[:1] - whole
    differences = (masks, unmasked, scorers[1:, pads:] - alone)
    return float(torch.cat([difference.flatten() for difference in differences]).abs().max())  # NaN if there is one


def _log_probs(denoiser: Denoiser, tokens_FL: Tensor, mask: Any) -> Float[Tensor, "F L K"]:
    """Log-probs of a few tokens at every position."""
    rows, length = tokens_FL.shape
    vocabulary = int(denoiser.model.config.vocab_size)
    targets_K = torch.linspace(0, vocabulary - 1, _TARGETS, device=tokens_FL.device).long()
    query_FA = torch.arange(length, device=tokens_FL.device).expand(rows, -1)
    logp_FAK: Tensor
    (logp_FAK,) = denoiser(tokens_FL, mask, query_FA, TargetLogProb(targets_K.expand(rows * length, -1)))
    return logp_FAK.double()


@torch.no_grad()
def causal_parts(network: Any) -> list[str]:
    """Class names of the modules whose outputs feel a change of what stands before them, and not of what follows."""
    found: dict[str, None] = {}

    def watch(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        hidden_FLD = _states((*args, *options.values()))
        before_FLD = _states(output if isinstance(output, tuple) else (output,))
        if hidden_FLD is None or before_FLD is None:
            return
        changed_FLD = hidden_FLD.clone()
        changed_FLD[:, _FEW // 2] = hidden_FLD[:, _FEW // 2].flip(-1) + 1
        swap = {id(hidden_FLD): changed_FLD}
        again = module.forward(
            *(swap.get(id(value), value) for value in args),
            **{name: swap.get(id(value), value) for name, value in options.items()},
        )
        after_FLD = _states(again if isinstance(again, tuple) else (again,))
        if after_FLD is None:
            return
        # Not bit for bit: routed to other experts, one token's rounding depends on another.
        rounding = before_FLD.abs().max() * (_ROUNDING if before_FLD.dtype in _TOLERANCE else _COARSE_ROUNDING)
        feels_L = ((after_FLD - before_FLD).abs() > rounding).flatten(2).any(2).any(0)
        if bool(feels_L[_FEW // 2 + 1 :].any()) and not bool(feels_L[: _FEW // 2].any()):
            found[type(module).__name__] = None

    modules = [module for module in network.base_model.modules() if module is not network.base_model]
    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in modules]
    try:
        tokens_FL = torch.arange(_FEW, device=network.device)[None] % int(network.config.vocab_size)
        network.base_model(input_ids=tokens_FL, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _states(values: tuple[Any, ...]) -> Tensor | None:
    """The first of the values that has a vector for each token."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim >= 3 and value.shape[1] == _FEW and value.is_floating_point():
            return value
    return None
