"""An autoregressive checkpoint made bidirectional: the start of a masked diffusion model (Dream 2508.15487)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from unmask.denoisers.base import MASK_TOKEN, Denoiser
from unmask.denoisers.directories import check_new
from unmask.denoisers.layers.fast_layers import fast_layers_or_log
from unmask.denoisers.loading import load_tokenizer, refuse_misfits, resolve, save_denoiser
from unmask.denoisers.plain import read_config
from unmask.denoisers.probe import check_masks
from unmask.errors import UserError


def convert(model: str, mask_token: str | None = None) -> tuple[Denoiser, PreTrainedTokenizerFast]:
    """The checkpoint attending both ways, with its shift kept and a mask token: `mask_token` reused, or one added.

    An added token starts as the mean of all embeddings. Raises UserError where the architecture stays causal, or the
    tokenizer lacks `mask_token`.
    """
    directory, tokenizer = resolve(model), load_tokenizer(model)
    config = read_config(directory, model)
    if getattr(config, "is_causal", True) is False:
        raise UserError(f"model {model!r} attends both ways already: use it as it is")
    config.is_causal = False
    config.use_cache = False
    options = {"dtype": "auto", "use_safetensors": True, "trust_remote_code": False}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # misfits are told below
    network, report = AutoModelForCausalLM.from_pretrained(directory, config=config, **options)
    refuse_misfits(model, report, ("missing", "mismatched"))
    network.eval()
    if not _attends_both_ways(network):
        raise UserError(
            f"{config.model_type} stays causal in this version of transformers: convert another architecture, "
            "such as llama, qwen2 or qwen3"
        )
    mask_id = _mask_id(tokenizer, network, mask_token)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {model!r} names no end-of-sequence token: add eos_token to its config")
    network.config.update({"mask_token_id": mask_id, "logits_shift": True, "eos_token_id": tokenizer.eos_token_id})
    fast_layers_or_log(network)
    denoiser = Denoiser(network, mask_id=mask_id, eos_id=tokenizer.eos_token_id, shift=True)
    check_masks(denoiser, model)
    return denoiser, tokenizer


def convert_to(model: str, directory: Path, mask_token: str | None) -> tuple[str, int]:
    """Convert into a new directory; the mask token and its id. Raises UserError where the directory holds something."""
    check_new(directory)
    denoiser, tokenizer = convert(model, mask_token)
    directory.mkdir(parents=True, exist_ok=True)
    save_denoiser(denoiser, tokenizer, directory)
    return str(tokenizer.convert_ids_to_tokens(denoiser.mask_id)), denoiser.mask_id


@torch.no_grad()
def _attends_both_ways(network: Any) -> bool:
    """Whether the first position feels a change of the last: architectures that ignore `is_causal` do not."""
    tokens_FL = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
    first_F = network.base_model(input_ids=tokens_FL, use_cache=False).last_hidden_state[:, 0]
    return not torch.equal(first_F[0], first_F[1])


def _mask_id(tokenizer: PreTrainedTokenizerFast, network: Any, mask_token: str | None) -> int:
    """The id of the mask token; a new one gets a row of its own in the embeddings."""
    if mask_token is not None:
        known = tokenizer.get_vocab().get(mask_token)
        if known is None:
            raise UserError(f"the tokenizer has no token {mask_token!r}: name one that it has, or none to add one")
        tokenizer.mask_token = mask_token
        return int(known)
    tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    mask_id = int(tokenizer.mask_token_id)
    if mask_id >= network.config.vocab_size:
        network.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (network.get_input_embeddings(), network.get_output_embeddings()):
            old_VD = layer.weight[:mask_id].float()
            layer.weight[mask_id] = old_VD.mean(0).to(layer.weight.dtype)
    return mask_id
