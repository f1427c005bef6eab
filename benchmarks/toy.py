"""The network that all sides share: a small bidirectional Llama with lively predictions, ours and as peers call it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import LogitsReducer
from unmask.denoisers.tiny import tiny_denoiser
from unmask.types import Prompts

BODY_SCALE = 3.0  # of all matrices: positions then differ in what they predict
LIVELY = 0.5  # standard deviation of the head; of logits it is 16 times that: a few tokens share the probability
SURE = 1.5  # of the same: one token has most of it
NEVER = 0.01  # scale of the head's rows of tokens that must not be the most probable one
CERTAIN = 50.0  # added to the logit of the end-of-sequence token where an answer is planted to have ended


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one case: a toy's vocabulary, rows (prompts or samples), prompt and completion tokens, denoising steps."""

    vocabulary: int
    rows: int
    prompt: int
    completion: int
    steps: int = 1

    @property
    def mask_id(self) -> int:
        """The last token."""
        return self.vocabulary - 1

    @property
    def eos_id(self) -> int:
        """The last but one."""
        return self.vocabulary - 2


def toy_denoiser(sizes: Sizes, head_std: float = LIVELY) -> Denoiser:
    """Width 256, 8 layers, random weights; neither mask nor end-of-sequence token is ever the most probable."""
    denoiser = tiny_denoiser(
        vocabulary=sizes.vocabulary,
        mask_id=sizes.mask_id,
        eos_id=sizes.eos_id,
        hidden=256,
        layers=8,
        heads=8,
        max_length=1024,
        seed=0,
    ).eval()
    head = denoiser.model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in denoiser.parameters():
            if weight.ndim == 2:
                weight.mul_(BODY_SCALE)
        head.mul_(head_std / head.std())
        head[[sizes.mask_id, sizes.eos_id]] *= NEVER
    return denoiser


def toy_prompts(sizes: Sizes) -> Prompts:
    """Unpadded prompts of random tokens; the first token of each row is its number, which names it ever after."""
    generator = torch.Generator().manual_seed(1)
    tokens_NP = torch.randint(sizes.eos_id, (sizes.rows, sizes.prompt), generator=generator)
    row_N = torch.arange(sizes.rows)
    tokens_NP[:, 0] = row_N
    return Prompts(
        tokens_NP=tokens_NP, attention_NP=torch.ones_like(tokens_NP).bool(), prompt_N=row_N, sample_N=row_N * 0
    )


class PeerView(nn.Module):
    """The same network as published code calls it: `network(x, attention_mask=None).logits`; weights are shared.

    `module` is what MDPO's code expects of a wrapper for distributed training. `ends_N`: planted answers.
    """

    def __init__(self, denoiser: Denoiser, ends_N: Tensor | None = None) -> None:
        super().__init__()
        self.network, self.eos_id, self.ends_N = denoiser.model, denoiser.eos_id, ends_N
        self.config, self.device, self.dtype = denoiser.model.config, denoiser.model.device, denoiser.model.dtype

    @property
    def module(self) -> Any:
        """What a distributed wrapper would hold."""
        return self.network

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Any:
        """Logits [F, L, V]."""
        logits_FLV = self.network(input_ids, attention_mask=attention_mask, use_cache=use_cache).logits
        if self.ends_N is not None:
            ended_FL = torch.arange(input_ids.shape[1]) >= self.ends_N[input_ids[:, 0]][:, None]
            logits_FLV[..., self.eos_id] += CERTAIN * ended_FL
        return SimpleNamespace(logits=logits_FLV)


# ---- planted answers ----


def planted_ends(sizes: Sizes) -> Tensor:
    """First column of the end of each row's answer: evenly from 32 % to 100 % of the completion, 66 % on average."""
    return sizes.prompt + (torch.linspace(0.32, 1.0, sizes.rows) * sizes.completion).round().long()


@dataclass(frozen=True, kw_only=True)
class Planted(LogitsReducer):
    """Another reducer's results, the end-of-sequence token all but certain at `ended_Q`."""

    reducer: LogitsReducer
    ended_Q: Tensor
    eos_id: int

    def from_logits(self, logits_CV: Tensor, chunk: slice, other_CV: Tensor | None = None) -> tuple[Tensor, ...]:
        """From logits that are written over."""
        logits_CV[:, self.eos_id] += CERTAIN * self.ended_Q[chunk]
        return self.reducer.from_logits(logits_CV, chunk)


class PlantedDenoiser(Denoiser):
    """A denoiser whose answers end at `ends_N` of the row that the first prompt token names."""

    ends_N: Tensor

    def forward(self, tokens_FL: Tensor, attention_FL: Any, query_FA: Tensor, reducer: Any, **options: Any) -> Any:
        """As the denoiser's own, the end-of-sequence token all but certain from the end of the answer on."""
        ended_Q = (query_FA >= self.ends_N[tokens_FL[:, 0]][:, None]).flatten()
        planted = Planted(reducer=reducer, ended_Q=ended_Q, eos_id=self.eos_id)
        return super().forward(tokens_FL, attention_FL, query_FA, planted, **options)


def with_planted_answers(denoiser: Denoiser, ends_N: Tensor) -> PlantedDenoiser:
    """The same network with planted answers."""
    planted = PlantedDenoiser(denoiser.model, mask_id=denoiser.mask_id, eos_id=denoiser.eos_id)
    planted.ends_N = ends_N
    return planted.eval()
