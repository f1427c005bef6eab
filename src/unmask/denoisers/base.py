"""Denoiser: a bidirectional transformer that predicts tokens at query positions of partly masked canvases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.denoisers.head.chunks import reduce_chunks
from unmask.denoisers.head.reducers import LogitsReducer, is_plain
from unmask.denoisers.head.workspace import Workspace
from unmask.denoisers.key_values import CacheWindow
from unmask.denoisers.layers.fast_layers import has_fast_layers
from unmask.errors import UserError

# Which tokens are pads, and who attends to whom. One of:
# None: no pads, all attend to all (or as the denoiser's own `block_length` says, here and below);
# bool [F, L]: False at pads, which nobody attends to;
# bool [F, 1, 1, L]: the same as a mask of keys, made once for many forwards by `mask_of`: with it or None, no forward
#     waits for the device to learn whether there are pads;
# int [F, L]: the block of each position, -1 at pads: a position attends to its own block and to earlier ones.
Attention = Bool[Tensor, "F L"] | Bool[Tensor, "F 1 1 L"] | Int[Tensor, "F L"] | None

MASK_TOKEN = "<|mask|>"  # noqa: S105  text of a mask token that is added to a vocabulary

# Settings of transformers' architectures that change logits after the head, or hidden states before it.
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier", "logits_mup_width_multiplier")
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size")  # positions that a layer attends to
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "softcap")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (LLaDA's): logits = u + (scale + 1)(c - u).

    c are the canvas's logits, u those of the canvas with the columns `prompt_FL` masked.
    """

    scale: float
    prompt_FL: Bool[Tensor, "F L"]


class Denoiser(nn.Module):
    """A network of `transformers` as p(token | canvas) at masked positions.

    `model` is a causal-LM class with `is_causal=False` in its config, or BERT's for masked language modelling; it
    is left as it is. Call `fast_layers(model)` for fewer passes over memory, as `load_denoiser` does.
    `shift`: the network's output at i-1 predicts the token at i (Dream).
    Windows of attention are left out: all layers attend to all positions, whatever the mask (`sees_all`).
    `block_length`: a position attends to its own block of so many tokens, counted from the prompt's first, and to
    earlier ones (LLaDA2); None: to all.
    `other_end_ids`: tokens that end a completion as `eos_id` does, which alone fills up and pads.
    `spelt`: ids from here on, to which a vocabulary is padded, are no tokens of the tokenizer and are never sampled;
    their logits stay in every normalizer. None: all are tokens. `holes`: runs of ids before it that are none either.
    Raises UserError for networks that change logits after the head.

        denoiser = Denoiser(LlamaForCausalLM(config), mask_id=126336, eos_id=126081).eval()
        (logp_FA1,) = denoiser(tokens_FL, attention_FL, query_FA, TargetLogProb(targets_Q1))
    """

    shift: bool = False
    block_length: int | None = None
    spelt: int | None = None
    holes: tuple[range, ...] = ()
    other_end_ids: tuple[int, ...] = ()

    def __init__(
        self,
        model: Any,
        *,
        mask_id: int,
        eos_id: int,
        shift: bool = False,
        block_length: int | None = None,
        spelt: int | None = None,
        holes: tuple[range, ...] = (),
        other_end_ids: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        _check_logits(model.config)
        self.model = model
        self.mask_id = mask_id
        self.eos_id = eos_id
        self.shift = shift
        self.block_length = block_length
        self.spelt = spelt
        self.holes = holes
        self.other_end_ids = other_end_ids
        self.sees_all = attention_window(model.config) is not None
        self.workspace = Workspace()

    def ends(self, tokens: Tensor) -> Tensor:
        """Which tokens end a completion."""
        ends: Tensor = tokens == self.eos_id
        for token in self.other_end_ids:
            ends = ends | (tokens == token)
        return ends

    @property
    def queries_last_layer(self) -> bool:
        """Whether the last layer works at query positions alone: the network has fast layers."""
        return has_fast_layers(self.model)

    @property
    def max_length(self) -> int:
        """The most positions that the network takes, prompt and completion together."""
        return int(self.model.config.max_position_embeddings)

    def forward(
        self,
        tokens_FL: Int[Tensor, "F L"],
        attention_FL: Attention,
        query_FA: Int[Tensor, "F A"],
        reducer: LogitsReducer,
        guidance: Guidance | None = None,
        other_model: Denoiser | None = None,
        part: CacheWindow | None = None,
        selected_Q: Int[Tensor, "Q"] | None = None,
    ) -> tuple[Tensor, ...]:
        """What `reducer` makes of the logits at the query columns `query_FA`: tensors [F, A, ...].

        Logits exist at these columns only, and for one chunk of them at a time. With `selected_Q`, indices into the
        F · A flattened query positions: tensors [Q, ...] for those alone.
        `attention_FL`: see `Attention`; blocks given there go before the denoiser's own `block_length`.
        `part`: run the columns of this cache window alone, which must hold the query columns.
        `other_model`: its logits, without gradient, are the reducer's third argument; pass this denoiser itself when
        both have the same weights.
        """
        shape: tuple[int, ...] = query_FA.shape if selected_Q is None else (-1,)
        hidden_QD = _at(self._hidden(tokens_FL, attention_FL, query_FA, part), selected_Q)
        head = self._head()
        if guidance is None and other_model is None and is_plain(head):
            reduced = reducer.from_head(hidden_QD, head, self.workspace)
            return tuple(_shaped(each, shape) for each in reduced)
        blank_QD = other_QD = None
        if other_model is not None and other_model is not self:
            with torch.no_grad():
                other_QD = _at(other_model._hidden(tokens_FL, attention_FL, query_FA), selected_Q)
        if guidance is not None:
            blank_FL = torch.where(guidance.prompt_FL, self.mask_id, tokens_FL)
            blank_QD = _at(self._hidden(blank_FL, attention_FL, query_FA), selected_Q)
        scale = 0.0 if guidance is None else guidance.scale
        reduce = partial(self._reduce, reducer, hidden_QD, blank_QD, scale, other_model, other_QD)
        chunks = reduce_chunks(reduce, len(hidden_QD), int(self.model.config.vocab_size))
        return tuple(_shaped(each, shape) for each in chunks)

    def _reduce(
        self,
        reducer: LogitsReducer,
        hidden_QD: Float[Tensor, "Q D"],
        blank_QD: Float[Tensor, "Q D"] | None,
        scale: float,
        other_model: Denoiser | None,
        other_QD: Float[Tensor, "Q D"] | None,
        chunk: slice,
    ) -> tuple[Tensor, ...]:
        """Logits of one chunk of positions, guided away from those of `blank_QD`, through `reducer`."""
        head = self._head()
        logits_CV = head(hidden_QD[chunk])
        if blank_QD is not None:
            blank_CV = head(blank_QD[chunk])
            logits_CV = blank_CV + (scale + 1) * (logits_CV - blank_CV)
        if other_model is None:
            return reducer.from_logits(logits_CV, chunk)
        with torch.no_grad():
            other_CV = logits_CV.detach() if other_QD is None else other_model._head()(other_QD[chunk])
        return reducer.from_logits(logits_CV, chunk, other_CV)

    def _hidden(
        self,
        tokens_FL: Int[Tensor, "F L"],
        attention_FL: Attention,
        query_FA: Int[Tensor, "F A"],
        part: CacheWindow | None = None,
    ) -> Float[Tensor, "Q D"]:
        """Last hidden states at the query positions, flattened over F and A."""
        real_FL, mask = _real_and_mask(tokens_FL, attention_FL)
        if self.sees_all and (mask is None or mask.ndim == 2):  # these transformers would narrow to windows
            mask = real_FL[:, None, None, :]
        position_FL = (real_FL.long().cumsum(1) - 1).clamp(min=0)
        if self.block_length is not None and (attention_FL is None or attention_FL.dtype == torch.bool):
            mask = _block_causal(torch.where(real_FL, position_FL // self.block_length, -1))
        columns_FA = query_FA
        if self.shift:  # a row's first token has no predecessor but a pad: it keeps its own column, padded or not
            before_FA = (query_FA - 1).clamp(min=0)
            columns_FA = torch.where(real_FL.gather(1, before_FA), before_FA, query_FA)
        options: dict[str, Any] = {"use_cache": False}
        if part is not None:
            part.cache.begin(part.columns, tokens_FL.shape[1], part.end)
            tokens_FL, position_FL, mask = part.select(tokens_FL), part.select(position_FL), part.select_mask(mask)
            columns_FA = part.index(columns_FA)
            options["cache"] = part.cache
        if mask is not None and mask.ndim == 4 and self.model.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=self.model.dtype).masked_fill(~mask, torch.finfo(self.model.dtype).min)
        queried = self.queries_last_layer
        if queried:
            options["query_columns"] = columns_FA
        with _pad_embedding_learns(self.model):
            hidden_FLD: Tensor = self.model.base_model(
                input_ids=tokens_FL, attention_mask=mask, position_ids=position_FL, **options
            ).last_hidden_state
        if not queried:
            hidden_FLD = hidden_FLD.gather(1, columns_FA[..., None].expand(-1, -1, hidden_FLD.shape[-1]))
        return hidden_FLD.flatten(0, 1)

    def _head(self) -> nn.Module:
        # A masked language model (BERT) has more between its last hidden states and its logits than one matrix.
        head: nn.Module = getattr(self.model, "cls", None) or self.model.get_output_embeddings()
        return head


@contextmanager
def _pad_embedding_learns(model: Any) -> Iterator[None]:
    """A forward whose gradient reaches the embedding of the pad token too, often the end of sequence's.

    PyTorch drops that gradient where `padding_idx` is set. It is read in the forward pass alone, and set again behind
    it. The network calls its embedding itself, so hooks, adapters, sharded weights and scaled embeddings all count.
    """
    embedding = model.get_input_embeddings()
    kept = embedding.padding_idx if torch.is_grad_enabled() else None
    if kept is None:
        yield
        return
    embedding.padding_idx = None
    try:
        yield
    finally:
        embedding.padding_idx = kept


def _check_logits(config: Any) -> None:
    """Raise UserError where logits are not the head's output alone, for the head is all that is read here."""
    config = config.get_text_config()
    for name in _SCALES:
        if getattr(config, name, None) not in (None, 1):
            raise UserError(
                f"{name} {getattr(config, name)} scales what the model's head says, and the head alone is read here: "
                f"fold it into the head's weights and set {name} 1.0 in config.json, or use another model"
            )
    for name in _CAPS:
        if getattr(config, name, None) is not None:
            raise UserError(
                f"{name} {getattr(config, name)} caps what the model's head says, and the head alone is read here: "
                f"use a model that has none ({name} null in config.json)"
            )


def attention_window(config: Any) -> int | None:
    """The narrowest window in which some layer attends by config, below the positions that the network takes; or None.

    A network that is given a mask of all pairs or keys ignores it, one that is given another or none does not.
    """
    config = config.get_text_config()
    windows = [getattr(config, name, None) for name in _WINDOWS]
    kinds = getattr(config, "layer_types", None)
    if kinds and all(kind == "full_attention" for kind in kinds):
        return None
    narrow = [window for window in windows if isinstance(window, int) and 0 < window < config.max_position_embeddings]
    return min(narrow, default=None)


def _shaped(reduced: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[Q, ...] as [*shape, ...]; where it has a gradient a copy, for a view that is written to loses FSDP's hook."""
    shaped = torch.unflatten(reduced, 0, shape)
    return shaped.clone() if shaped.requires_grad else shaped


def _at(hidden_QD: Tensor, selected_Q: Tensor | None) -> Tensor:
    return hidden_QD if selected_Q is None else hidden_QD[selected_Q]


def mask_of(attention_FL: Bool[Tensor, "F L"]) -> Attention:
    """The `Attention` of many forwards with these pads (False): None without, else a mask of keys; one host sync."""
    return None if bool(attention_FL.all()) else attention_FL[:, None, None, :]


def _real_and_mask(tokens_FL: Int[Tensor, "F L"], attention: Attention) -> tuple[Bool[Tensor, "F L"], Tensor | None]:
    """Which tokens are not pads, and the mask for the network."""
    if attention is None:
        return torch.ones_like(tokens_FL, dtype=torch.bool), None
    if attention.ndim == 4:
        return attention[:, 0, 0], attention
    if attention.dtype == torch.bool:
        return attention, attention.long()
    return attention >= 0, _block_causal(attention)


def _block_causal(block_FL: Int[Tensor, "F L"]) -> Bool[Tensor, "F 1 L L"]:
    """Which keys (last) a query sees: its own block and those before. Pads see pads, for a softmax needs something."""
    key_F1L, query_FL1 = block_FL[:, None, :], block_FL[:, :, None]
    return ((key_F1L <= query_FL1) & ((key_F1L >= 0) | (query_FL1 < 0)))[:, None]
