"""From hidden states to a few numbers a position: logits exist for one chunk of positions at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Reduces logits at some asked positions (flattened over F and A; the slice says which) to a few numbers a position.
# Reads the logits of a second, frozen denoiser too, where the denoiser is given one.
LogitsReducer = Callable[..., tuple[Tensor, ...]]

# (log-probs of a chunk of positions [C, K], chunk) -> derivative of the loss by them [C, K]
LogpGradient = Callable[[Tensor, slice], Tensor]

_LOGITS_PER_CHUNK = 1 << 24  # 64 MB in float32


class Workspace:
    """Memory for logits that is used again at every step, rather than asked for and given back.

    What it holds is overwritten by the next call: for logits that are used up at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def __deepcopy__(self, memo: Any) -> Workspace:
        return Workspace()

    def floats(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """float32 of a shape, with anything in it."""
        count = math.prod(shape)
        buffer = self._buffers.get((name, device))
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[name, device] = torch.empty(count, device=device)
        return buffer[:count].view(shape)

    def logits(self, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
        """hidden · weight, in float32 at least."""
        if hidden_CD.dtype == torch.float64:
            return nn.functional.linear(hidden_CD, weight_VD)
        shape = (len(hidden_CD), len(weight_VD))
        return multiply_into(self.floats("logits", shape, hidden_CD.device), hidden_CD, weight_VD)


def multiply_into(logits_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """hidden · weight, written to float32."""
    if hidden_CD.dtype == weight_VD.dtype == torch.float32 and not is_mixed(hidden_CD):
        return torch.mm(hidden_CD, weight_VD.t(), out=logits_CV)
    return logits_CV.copy_(nn.functional.linear(hidden_CD, weight_VD))


def is_mixed(tensor: Tensor) -> bool:
    """Whether autocast picks the number type of products; it casts none that are written to memory given (mm's out)."""
    return torch.is_autocast_enabled(tensor.device.type)


def chunk_positions(vocabulary: int) -> int:
    """Asked positions whose logits exist at the same time."""
    return max(1, _LOGITS_PER_CHUNK // vocabulary)


def chunks_of(positions: int, vocabulary: int) -> list[slice]:
    """Chunks of asked positions whose logits exist at the same time."""
    return even_chunks(positions, chunk_positions(vocabulary))


def even_chunks(positions: int, most: int) -> list[slice]:
    """Chunks of at most so many positions, as equal as may be; one where there is none."""
    count = max(1, -(-positions // most))
    size = max(1, -(-positions // count))
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)] or [slice(0, 0)]


@dataclass(frozen=True)
class TargetLogProb:
    """log softmax(logits / temperature) at K targets of each asked position: [C, K].

    `grad_logp`: the derivative of the loss by them, where it depends on the log-probs of the same position alone. The
    gradient is then made chunk by chunk while the logits are there, and the loss must be what the grad_logp belongs to.
    """

    targets_QK: Int[Tensor, "Q K"]
    temperature: float = 1.0
    grad_logp: LogpGradient | None = None

    def __call__(self, logits_CV: Float[Tensor, "C V"], chunk: slice) -> tuple[Tensor, ...]:
        exact_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
        scaled_CV = exact_CV / self.temperature if self.temperature != 1 else exact_CV
        return (scaled_CV.gather(1, self.targets_QK[chunk]) - scaled_CV.logsumexp(1, keepdim=True),)


@dataclass(frozen=True)
class ContrastiveLogProb:
    """log softmax of (1-b) old + b now, and of (1+b) old - b now, at the target of each asked position: [C, 2]."""

    targets_Q: Int[Tensor, "Q"]
    blend: float

    def __call__(
        self, logits_CV: Float[Tensor, "C V"], chunk: slice, old_CV: Float[Tensor, "C V"]
    ) -> tuple[Tensor, ...]:
        if logits_CV.dtype != torch.float64:
            logits_CV, old_CV = logits_CV.float(), old_CV.float()
        pulled_CV = old_CV + self.blend * (logits_CV - old_CV)
        mirrored_CV = old_CV - self.blend * (logits_CV - old_CV)
        target_C1 = self.targets_Q[chunk][:, None]
        logps = [mixed.gather(1, target_C1) - mixed.logsumexp(1, keepdim=True) for mixed in (pulled_CV, mirrored_CV)]
        return (torch.cat(logps, dim=1),)


def reduce_chunks(reduce: Callable[[slice], tuple[Tensor, ...]], positions: int, vocabulary: int) -> list[Tensor]:
    """What `reduce` makes of every chunk; where gradients are wanted, logits of several chunks are made twice."""
    chunks = chunks_of(positions, vocabulary)
    if len(chunks) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(reduce, chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    else:
        parts = [reduce(chunk) for chunk in chunks]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def is_plain(head: nn.Module) -> bool:
    """Whether logits are one product, whose gradient is written out here."""
    return type(head) is nn.Linear and head.bias is None


def linear_logp(
    hidden_QD: Float[Tensor, "Q D"], head: nn.Linear, reducer: TargetLogProb, workspace: Workspace | None = None
) -> Float[Tensor, "Q K"]:
    """`reducer` to the logits of a plain head, its gradient in few passes over them and none kept from chunk to chunk.

    With respect to a chunk's logits it is (sum_k g_k onehot(target_k) - (sum_k g_k) softmax) / temperature, g_k the
    derivative of the loss by log-prob k.
    """
    logp_QK: Tensor = _LinearLogProb.apply(hidden_QD, head.weight, reducer, workspace or Workspace())  # type: ignore[no-untyped-call]
    return logp_QK


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_QD: Tensor, weight_VD: Tensor, reducer: TargetLogProb, workspace: Workspace) -> Tensor:
        wanted = ctx.needs_input_grad[:2]
        now = (
            _Gradients(hidden_QD, weight_VD, reducer, wanted) if reducer.grad_logp is not None and any(wanted) else None
        )
        logps, grads = [], []
        chunks = chunks_of(len(hidden_QD), len(weight_VD))
        kept: list[Tensor] = []
        keeps = len(chunks) == 1 and now is None and any(wanted)
        for chunk in chunks:
            softmax = _softmax(hidden_QD[chunk], weight_VD, reducer, chunk, Workspace() if keeps else workspace)
            logps.append(softmax.logp_CK)
            if now is not None and reducer.grad_logp is not None:
                grads.append(reducer.grad_logp(softmax.logp_CK, chunk))
                now.add(chunk, softmax, grads[-1])
            elif keeps:
                kept = [softmax.exp_CV, softmax.total_C1]
            del softmax  # before the logits of the next chunk are made
        ctx.save_for_backward(hidden_QD, weight_VD, *kept)
        kind = hidden_QD.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.reducer, ctx.wanted, ctx.workspace = reducer, wanted, workspace
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
        gradients = _Gradients(hidden_QD, weight_VD, ctx.reducer, ctx.wanted)
        kind, dtype, enabled = ctx.autocast
        with torch.autocast(kind, dtype, enabled=enabled):
            for chunk in chunks_of(len(hidden_QD), len(weight_VD)):
                if kept:
                    softmax = _Softmax(kept[0], kept[1], gradient_QK)
                else:
                    softmax = _softmax(hidden_QD[chunk], weight_VD, ctx.reducer, chunk, ctx.workspace)
                gradients.add(chunk, softmax, gradient_QK[chunk])
                del softmax
        return gradients.of_hidden, gradients.of_weight, None, None


class _Softmax(NamedTuple):
    """Of a chunk: exp(logits - the largest), their sums, and log-probs of the targets."""

    exp_CV: Tensor
    total_C1: Tensor
    logp_CK: Tensor


def _softmax(
    hidden_CD: Tensor, weight_VD: Tensor, reducer: TargetLogProb, chunk: slice, workspace: Workspace
) -> _Softmax:
    """In the memory of the logits."""
    logits_CV = workspace.logits(hidden_CD, weight_VD)
    if reducer.temperature != 1:
        logits_CV.div_(reducer.temperature)
    logits_CV.sub_(logits_CV.amax(1, keepdim=True))
    target_CK = logits_CV.gather(1, reducer.targets_QK[chunk])
    exp_CV = logits_CV.exp_()
    total_C1 = exp_CV.sum(1, keepdim=True)
    return _Softmax(exp_CV, total_C1, target_CK - total_C1.log())


class _Gradients:
    """Of hidden states and of the head's weight, summed over chunks."""

    def __init__(self, hidden_QD: Tensor, weight_VD: Tensor, reducer: TargetLogProb, wanted: tuple[bool, bool]) -> None:
        self.hidden_QD, self.weight_VD, self.reducer = hidden_QD, weight_VD, reducer
        self.of_hidden = torch.empty_like(hidden_QD) if wanted[0] else None
        self.wants_weight = wanted[1]
        self.of_weight: Tensor | None = None

    def add(self, chunk: slice, softmax: _Softmax, grad_CK: Tensor) -> None:
        """Of one chunk, whose softmax is used up."""
        grad_CK = (grad_CK / self.reducer.temperature).to(softmax.exp_CV.dtype)
        gradient_CV = softmax.exp_CV.mul_(-grad_CK.sum(1, keepdim=True) / softmax.total_C1)
        gradient_CV.scatter_add_(1, self.reducer.targets_QK[chunk], grad_CK)
        gradient_CV = gradient_CV.to(self.weight_VD.dtype)
        if self.of_hidden is not None:
            self.of_hidden[chunk] = gradient_CV @ self.weight_VD
        if self.wants_weight:
            self._add_weight(gradient_CV, self.hidden_QD[chunk])

    def _add_weight(self, gradient_CV: Tensor, hidden_CD: Tensor) -> None:
        if self.of_weight is None:
            self.of_weight = (gradient_CV.t() @ hidden_CD).to(self.weight_VD.dtype)
        elif self.of_weight.dtype == hidden_CD.dtype == gradient_CV.dtype and not is_mixed(hidden_CD):
            self.of_weight.addmm_(gradient_CV.t(), hidden_CD)
        else:  # mixed precision: the product is rounded, its sum over chunks is not
            self.of_weight += gradient_CV.t() @ hidden_CD
