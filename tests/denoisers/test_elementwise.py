"""Element-wise kernels with written-out gradients: the values, gradients and precision of transformers' own."""

import pytest
import torch
from transformers.models.glm4_moe.modeling_glm4_moe import apply_rotary_pos_emb
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from unmask.denoisers.layers.elementwise import gated, rms_norm, rotate


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 4), (1, 1)])
def test_rms_norm_and_its_gradient_equal_transformers(shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    norm = LlamaRMSNorm(shape[-1], eps=1e-5).double()
    norm.weight.data = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    ours = rms_norm(x, norm.weight, norm.variance_epsilon)
    torch.testing.assert_close(ours, norm(x), rtol=1e-6, atol=1e-6)  # theirs has its mean in float32
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-5), (x, norm.weight))


def test_rms_norm_of_zeros_has_a_finite_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 4), 1e3))


@pytest.mark.parametrize("width", [8, 4])
def test_rotate_and_its_gradient_equal_transformers(width):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64).transpose(1, 2).requires_grad_()
    angle = torch.randn(2, 5, width // 2, generator=generator, dtype=torch.float64).repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    theirs, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rotate(x, cos[:, None], sin[:, None]), theirs)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos[:, None], sin[:, None]), (x,))


def test_rms_norm_and_rotate_in_bf16_are_no_worse_than_transformers():
    generator = torch.Generator().manual_seed(3)
    x = (3 * torch.randn(64, 256, generator=generator)).bfloat16()
    norm = LlamaRMSNorm(256).bfloat16()
    norm.weight.data = torch.rand(256, generator=generator).bfloat16()
    true = rms_norm(x.double(), norm.weight.double(), 1e-6)
    ours = rms_norm(x, norm.weight, 1e-6)
    assert ours.dtype == torch.bfloat16
    assert (ours - true).abs().max() <= 1.01 * (norm(x) - true).abs().max()
    angle = (6 * torch.rand(64, 128, generator=generator)).repeat(1, 2)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    (true,), _ = apply_rotary_pos_emb(x[None].double(), x[None].double(), cos.double(), sin.double(), unsqueeze_dim=0)
    (theirs,), _ = apply_rotary_pos_emb(x[None], x[None], cos, sin, unsqueeze_dim=0)
    ours = rotate(x, cos, sin)
    assert ours.dtype == torch.bfloat16
    assert (ours - true).abs().max() <= 1.01 * (theirs - true).abs().max()


@pytest.mark.parametrize(
    ("x_type", "weight_type"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_rms_norm_gradient_in_half_precision_is_near_float64(x_type, weight_type):
    generator = torch.Generator().manual_seed(5)
    x, grad_logp = torch.randn(2, 64, 256, generator=generator).to(x_type)
    x[0] *= 3e4 / x[0].abs().max()  # a massive activation; times its grad_logp it is beyond float16
    grad_logp = (30 * grad_logp).to(torch.promote_types(x_type, weight_type))
    weight = torch.rand(256, generator=generator).to(weight_type)
    given = (x.requires_grad_(), weight.requires_grad_())
    exact = tuple(each.detach().double().requires_grad_() for each in given)
    ours = rms_norm(*given, 1e-6)
    assert ours.dtype == grad_logp.dtype
    found = torch.autograd.grad(ours, given, grad_logp)
    expected = torch.autograd.grad(rms_norm(*exact, 1e-6), exact, grad_logp.double())
    for our, true, each in zip(found, expected, given, strict=True):
        assert our.dtype == each.dtype
        assert (our - true).norm() <= 0.01 * true.norm()


@torch.no_grad()
def test_gated_equals_the_formula_with_and_without_gradient():
    gate, up = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = gate * gate.sigmoid() * up
    torch.testing.assert_close(gated(gate.clone(), up), expected)
    with torch.enable_grad():
        torch.testing.assert_close(gated(gate, up), expected)
        assert torch.autograd.gradcheck(gated, (gate.requires_grad_(), up.requires_grad_()))
