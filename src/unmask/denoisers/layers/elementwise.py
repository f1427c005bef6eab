"""RMS norm, rotary embedding and SwiGLU gate with written-out gradients: transformers' functions, to rounding.

Activations of a batch are larger than a cache, so a pass over them costs what a small product costs. These take about
half the passes that autograd makes of the formulas, and keep less for the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from unmask.denoisers.autograd import apply


def rms_norm(x: Float[Tensor, "... D"], weight_D: Float[Tensor, "D"], epsilon: float) -> Float[Tensor, "... D"]:
    """weight · x / sqrt(mean(x²) + epsilon), the mean in float32 at least (arXiv 1910.07467)."""
    return apply(_RMSNorm, x, weight_D, epsilon)


def rotate(
    x: Float[Tensor, "... L H"], cos: Float[Tensor, "... L R"], sin: Float[Tensor, "... L R"]
) -> Float[Tensor, "... L H"]:
    """Rotary position embedding (2104.09864) of the first R of H entries: entry i turned with entry i + R/2 by angle i.

    The halves of `cos` are alike, and those of `sin`.
    """
    width = cos.shape[-1]
    rotated = apply(_Rotate, x[..., :width], cos, sin)
    return rotated if width == x.shape[-1] else torch.cat([rotated, x[..., width:]], dim=-1)


def gated(gate: Float[Tensor, "... M"], up: Float[Tensor, "... M"]) -> Float[Tensor, "... M"]:
    """silu(gate) · up (arXiv 2002.05202); where no gradient is made, written over `gate`."""
    if not torch.is_grad_enabled():
        return silu(gate, inplace=True).mul_(up)
    return apply(_Gated, gate, up)


class _RMSNorm(torch.autograd.Function):
    """y = w · r · x with r = (mean(x²) + epsilon)^-1/2 of each position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        normed = (x * inverse).to(x.dtype)
        scaled: Tensor = normed.mul_(weight_D) if weight_D.dtype == normed.dtype else normed * weight_D
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """dx = r · (w · dy - r² · x · mean(w · dy · x)), dw = sum of dy · r · x over positions."""
        x, weight_D, inverse = ctx.saved_tensors
        product = grad_logp.to(inverse.dtype) * x  # in float16 it might not fit
        width = x.shape[-1]
        mean = torch.mv(product.reshape(-1, width), weight_D.to(inverse.dtype)).view(inverse.shape) / width
        d_x = (grad_logp * weight_D).to(inverse.dtype).mul_(inverse).addcmul_(x, mean.mul_(inverse**3), value=-1)
        d_weight = product.mul_(inverse).reshape(-1, width).sum(0) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, None


class _Rotate(torch.autograd.Function):
    """(a, b) -> (a · cos - b · sin, b · cos + a · sin), a and b the halves of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor) -> tuple[Tensor, None, None]:
        """Turned back."""
        cos, sin = ctx.saved_tensors
        return _rotated(grad_logp, cos, sin, -1), None, None


class _Gated(torch.autograd.Function):
    """silu(gate) · up, of which the first factor is computed again rather than kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad_logp * up, gate), silu(gate).mul_(grad_logp)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    rotated = x * cos
    (a, b), (turned_a, turned_b) = x.chunk(2, dim=-1), rotated.chunk(2, dim=-1)
    half_sin = sin.narrow(-1, 0, sin.shape[-1] // 2)
    turned_a.addcmul_(b, half_sin, value=-sign)
    turned_b.addcmul_(a, half_sin, value=sign)
    return rotated
