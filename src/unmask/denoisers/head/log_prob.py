"""Log-probs of target tokens from hidden states and a plain head, fused with their gradient.

Logits exist for one chunk of positions at a time, in memory that is used again; none are kept for the backward pass
where there are several chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.denoisers.autograd import apply
from unmask.denoisers.head.chunks import chunks_of
from unmask.denoisers.head.workspace import Workspace, is_mixed

# (log-probs of a chunk of positions [C, K], chunk) -> derivative of the loss by them [C, K]
LogpGradient = Callable[[Tensor, slice], Tensor]


def linear_logp(
    hidden_QD: Float[Tensor, "Q D"],
    weight_VD: Float[Tensor, "V D"],
    targets_QK: Int[Tensor, "Q K"],
    *,
    temperature: float = 1.0,
    grad_logp: LogpGradient | None = None,
    workspace: Workspace | None = None,
) -> Float[Tensor, "Q K"]:
    """log softmax(hidden · weight^T / temperature) at K targets of each position, [Q, K].

    Its gradient with respect to a chunk's logits is (sum_k g_k onehot(target_k) - (sum_k g_k) softmax) / temperature,
    g_k the derivative of the loss by log-prob k: few passes over the logits. `grad_logp` gives g where the loss is
    elementwise in the log-probs: the gradient is then made in the forward pass, while a chunk's logits are there. The
    backward pass checks that the loss was the one that `grad_logp` belongs to.
    """
    spec = _Spec(targets_QK, temperature, grad_logp)
    return apply(_LinearLogProb, hidden_QD, weight_VD, spec, workspace or Workspace())


class _Spec(NamedTuple):
    targets_QK: Tensor
    temperature: float
    grad_logp: LogpGradient | None


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_QD: Tensor, weight_VD: Tensor, spec: _Spec, workspace: Workspace) -> Tensor:
        wanted = ctx.needs_input_grad[:2]
        now = _Gradients(hidden_QD, weight_VD, spec, wanted) if spec.grad_logp is not None and any(wanted) else None
        logps, grads = [], []
        chunks = chunks_of(len(hidden_QD), len(weight_VD))
        kept: list[Tensor] = []
        keeps = len(chunks) == 1 and now is None and any(wanted)
        for chunk in chunks:
            softmax = _softmax(hidden_QD[chunk], weight_VD, spec, chunk, Workspace() if keeps else workspace)
            logps.append(softmax.logp_CK)
            if now is not None and spec.grad_logp is not None:
                grads.append(spec.grad_logp(softmax.logp_CK, chunk))
                now.add(chunk, softmax, grads[-1])
            elif keeps:
                kept = [softmax.exp_CV, softmax.total_C1]
            del softmax  # before the logits of the next chunk are made
        ctx.save_for_backward(hidden_QD, weight_VD, *kept)
        kind = hidden_QD.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.spec, ctx.wanted, ctx.workspace = spec, wanted, workspace
        ctx.now, ctx.grad_QK = now, torch.cat(grads) if grads else None
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, gradient_QK: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.now is not None:
            # What is not finite is not compared: gradients then hold NaN, and whoever steps looks for it. One
            # NaN may spoil the true grad_logp of a whole sequence, while those of other chunks were made without it.
            same_QK = torch.isclose(gradient_QK, ctx.grad_QK, rtol=1e-3, atol=1e-7) | ~gradient_QK.isfinite()
            # No wait for the device: on GPUs the check fails later, and fails all the same.
            torch._assert_async(same_QK.all())
            gradients, ctx.now = ctx.now, None  # not to be kept longer than the graph is
            return gradients.of_hidden, gradients.of_weight, None, None
        hidden_QD, weight_VD, *kept = ctx.saved_tensors
        gradients = _Gradients(hidden_QD, weight_VD, ctx.spec, ctx.wanted)
        kind, dtype, enabled = ctx.autocast
        with torch.autocast(kind, dtype, enabled=enabled):
            for chunk in chunks_of(len(hidden_QD), len(weight_VD)):
                if kept:
                    softmax = _Softmax(kept[0], kept[1], gradient_QK)
                else:
                    softmax = _softmax(hidden_QD[chunk], weight_VD, ctx.spec, chunk, ctx.workspace)
                gradients.add(chunk, softmax, gradient_QK[chunk])
                del softmax
        return gradients.of_hidden, gradients.of_weight, None, None


class _Softmax(NamedTuple):
    """Of a chunk: exp(logits - the largest), their sums, and log-probs of the targets."""

    exp_CV: Tensor
    total_C1: Tensor
    logp_CK: Tensor


def _softmax(hidden_CD: Tensor, weight_VD: Tensor, spec: _Spec, chunk: slice, workspace: Workspace) -> _Softmax:
    """In the memory of the logits."""
    logits_CV = workspace.logits(hidden_CD, weight_VD)
    if spec.temperature != 1:
        logits_CV.div_(spec.temperature)
    logits_CV.sub_(logits_CV.amax(1, keepdim=True))
    target_CK = logits_CV.gather(1, spec.targets_QK[chunk])
    exp_CV = logits_CV.exp_()
    total_C1 = exp_CV.sum(1, keepdim=True)
    return _Softmax(exp_CV, total_C1, target_CK - total_C1.log())


class _Gradients:
    """Of hidden states and of the head's weight, summed over chunks."""

    def __init__(self, hidden_QD: Tensor, weight_VD: Tensor, spec: _Spec, wanted: tuple[bool, bool]) -> None:
        self.hidden_QD, self.weight_VD, self.spec = hidden_QD, weight_VD, spec
        self.of_hidden = torch.empty_like(hidden_QD) if wanted[0] else None
        self.wants_weight = wanted[1]
        self.of_weight: Tensor | None = None

    def add(self, chunk: slice, softmax: _Softmax, grad_CK: Tensor) -> None:
        """Of one chunk, whose softmax is used up."""
        grad_CK = (grad_CK / self.spec.temperature).to(softmax.exp_CV.dtype)
        gradient_CV = softmax.exp_CV.mul_(-grad_CK.sum(1, keepdim=True) / softmax.total_C1)
        gradient_CV.scatter_add_(1, self.spec.targets_QK[chunk], grad_CK)
        gradient_CV = gradient_CV.to(self.weight_VD.dtype)
        if self.of_hidden is not None:
            self.of_hidden[chunk] = gradient_CV @ self.weight_VD
        if self.wants_weight:
            self._add_weight(gradient_CV, self.hidden_QD[chunk])

    def _add_weight(self, gradient_CV: Tensor, hidden_CD: Tensor) -> None:
        low = torch.finfo(self.weight_VD.dtype).bits < 32
        if self.of_weight is None:
            kind = torch.float32 if low else self.weight_VD.dtype  # sums over chunks are not rounded
            self.of_weight = (gradient_CV.t() @ hidden_CD).to(kind)
        elif self.of_weight.dtype == hidden_CD.dtype == gradient_CV.dtype and not is_mixed(hidden_CD):
            self.of_weight.addmm_(gradient_CV.t(), hidden_CD)
        else:  # mixed precision: the product is rounded, its sum over chunks is not
            self.of_weight += gradient_CV.t() @ hidden_CD
