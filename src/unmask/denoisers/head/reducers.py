"""Logits reducers: what is made of the logits at query positions, before the logits are gone.

Logits [positions, vocabulary] never exist at once. A `Denoiser` computes them for a chunk of positions at a time, and a
reducer turns those into a few numbers a position: log-probs of targets, sampled tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.denoisers.head.chunks import reduce_chunks
from unmask.denoisers.head.log_prob import LogpGradient, linear_logp
from unmask.denoisers.head.workspace import Workspace


class LogitsReducer(ABC):
    """Turns logits at query positions into a few numbers a position.

    The query positions of all forwards are flattened (Q = F · A); `chunk` says which of them `logits_CV` holds. A
    reducer needs `from_logits` alone; one with a faster way through a plain head overrides `from_head` too.

        class Entropy(LogitsReducer):
            def from_logits(self, logits_CV, chunk, other_CV=None):
                logp_CV = logits_CV.float().log_softmax(1)
                return (-(logp_CV.exp() * logp_CV).sum(1),)

        (entropy_FA,) = denoiser(tokens_FL, attention_FL, query_FA, Entropy())
    """

    @abstractmethod
    def from_logits(
        self, logits_CV: Float[Tensor, "C V"], chunk: slice, other_CV: Float[Tensor, "C V"] | None = None
    ) -> tuple[Tensor, ...]:
        """Results [C, ...] of one chunk. `other_CV`: a second denoiser's logits, where the call names one."""

    def from_head(self, hidden_QD: Float[Tensor, "Q D"], head: nn.Linear, workspace: Workspace) -> tuple[Tensor, ...]:
        """Results [Q, ...] of all positions, from their last hidden states and a head without bias.

        `workspace`: memory for logits that are used up before this returns.
        """

        def reduce(chunk: slice) -> tuple[Tensor, ...]:
            return self.from_logits(head(hidden_QD[chunk]), chunk)

        return tuple(reduce_chunks(reduce, len(hidden_QD), len(head.weight)))


@dataclass(frozen=True)
class AllLogits(LogitsReducer):
    """The logits themselves, [C, V]: for small vocabularies, or few positions."""

    def from_logits(self, logits_CV: Tensor, chunk: slice, other_CV: Tensor | None = None) -> tuple[Tensor, ...]:
        """As they are."""
        return (logits_CV,)


@dataclass(frozen=True)
class TargetLogProb(LogitsReducer):
    """log softmax(logits / temperature) at K targets of each query position: [C, K].

    `grad_logp`: the derivative of the loss by them, where the loss is elementwise in them; the gradient is then made
    chunk by chunk in the forward pass, and the loss must be what `grad_logp` belongs to (see `linear_logp`).
    """

    targets_QK: Int[Tensor, "Q K"]
    temperature: float = 1.0
    grad_logp: LogpGradient | None = None

    def from_logits(
        self, logits_CV: Float[Tensor, "C V"], chunk: slice, other_CV: Float[Tensor, "C V"] | None = None
    ) -> tuple[Tensor, ...]:
        """The formula, differentiated by autograd."""
        exact_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
        scaled_CV = exact_CV / self.temperature if self.temperature != 1 else exact_CV
        return (scaled_CV.gather(1, self.targets_QK[chunk]) - scaled_CV.logsumexp(1, keepdim=True),)

    def from_head(self, hidden_QD: Float[Tensor, "Q D"], head: nn.Linear, workspace: Workspace) -> tuple[Tensor, ...]:
        """Fused with its gradient."""
        logp_QK = linear_logp(
            hidden_QD,
            head.weight,
            self.targets_QK,
            temperature=self.temperature,
            grad_logp=self.grad_logp,
            workspace=workspace,
        )
        return (logp_QK,)


@dataclass(frozen=True)
class ContrastiveLogProb(LogitsReducer):
    """log softmax of (1-b) old + b now, and of (1+b) old - b now, at the target of each query position: [C, 2].

    Needs a second denoiser, whose logits are `old`; `blend` is b.
    """

    targets_Q: Int[Tensor, "Q"]
    blend: float

    def from_logits(
        self, logits_CV: Float[Tensor, "C V"], chunk: slice, other_CV: Float[Tensor, "C V"] | None = None
    ) -> tuple[Tensor, ...]:
        """Raises ValueError where the call names no second denoiser."""
        if other_CV is None:
            raise ValueError("ContrastiveLogProb compares two denoisers: call the denoiser with other_model")
        old_CV = other_CV
        if logits_CV.dtype != torch.float64:
            logits_CV, old_CV = logits_CV.float(), old_CV.float()
        pulled_CV = old_CV + self.blend * (logits_CV - old_CV)
        mirrored_CV = old_CV - self.blend * (logits_CV - old_CV)
        target_C1 = self.targets_Q[chunk][:, None]
        logps = [mixed.gather(1, target_C1) - mixed.logsumexp(1, keepdim=True) for mixed in (pulled_CV, mirrored_CV)]
        return (torch.cat(logps, dim=1),)


def is_plain(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether logits are one matrix product of the hidden states, which `LogitsReducer.from_head` takes."""
    return type(head) is nn.Linear and head.bias is None
