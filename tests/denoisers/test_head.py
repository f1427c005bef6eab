"""The head's written-out gradient is autograd's, whole or in chunks, made at once or later."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unmask.denoisers.head import chunks as heads
from unmask.denoisers.head.chunks import chunks_of
from unmask.denoisers.head.log_prob import linear_logp
from unmask.denoisers.head.reducers import TargetLogProb, is_plain

POSITIONS, VOCABULARY, WIDTH = 11, 7, 5


@pytest.fixture
def in_chunks(monkeypatch):
    """Three positions a chunk."""
    monkeypatch.setattr(heads, "_LOGITS_PER_CHUNK", 3 * VOCABULARY)


def parts_of(dtype=torch.float64, targets=2):
    generator = torch.Generator().manual_seed(0)
    hidden_QD = torch.randn(POSITIONS, WIDTH, dtype=dtype, generator=generator).requires_grad_()
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    linear.weight.data = torch.randn(VOCABULARY, WIDTH, dtype=dtype, generator=generator)
    targets_QK = torch.randint(VOCABULARY, (POSITIONS, targets), generator=generator)
    targets_QK[0] = 3  # the same twice
    wish_QK = torch.randn(POSITIONS, targets, dtype=dtype, generator=generator)
    return hidden_QD, linear, targets_QK, wish_QK


def loss_of(logp_QK, wish_QK):
    return (wish_QK * logp_QK + 0.1 * logp_QK.square()).sum()


def slope_of(wish_QK):
    return lambda logp_CK, chunk: wish_QK[chunk] + 0.2 * logp_CK


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_gradients_are_autograds(temperature, chunked, at_once, monkeypatch):
    if chunked:
        monkeypatch.setattr(heads, "_LOGITS_PER_CHUNK", 3 * VOCABULARY)
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    reducer = TargetLogProb(targets_QK, temperature, slope_of(wish_QK) if at_once else None)
    ours = linear_logp(hidden_QD, linear, reducer)
    theirs = (linear(hidden_QD) / temperature).log_softmax(1).gather(1, targets_QK)
    torch.testing.assert_close(ours, theirs)
    expected = gradients(loss_of(theirs, wish_QK), hidden_QD, linear.weight)
    for our, their in zip(gradients(loss_of(ours, wish_QK), hidden_QD, linear.weight), expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_has_no_gradient(frozen):
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    (hidden_QD if frozen == "hidden" else linear.weight).requires_grad_(False)
    trained = linear.weight if frozen == "hidden" else hidden_QD
    ours = linear_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, slope_of(wish_QK)))
    theirs = linear(hidden_QD).log_softmax(1).gather(1, targets_QK)
    (our,), (their,) = gradients(loss_of(ours, wish_QK), trained), gradients(loss_of(theirs, wish_QK), trained)
    torch.testing.assert_close(our, their)


@pytest.mark.usefixtures("in_chunks")
def test_a_loss_that_is_not_the_slopes_is_refused():
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    logp_QK = linear_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, slope_of(wish_QK)))
    with pytest.raises(RuntimeError):
        loss_of(logp_QK, wish_QK + 1).backward()


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["hidden", "weight"])
def test_what_is_not_finite_reaches_the_gradients(where, value):
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    (hidden_QD if where == "hidden" else linear.weight).data[0, 0] = value
    logp_QK = linear_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, slope_of(wish_QK)))
    of_hidden, of_weight = gradients(loss_of(logp_QK, wish_QK), hidden_QD, linear.weight)
    assert not bool(of_hidden.isfinite().all())
    assert not bool(of_weight.isfinite().all())


@pytest.mark.usefixtures("in_chunks")
def test_one_chunk_that_is_not_finite_may_spoil_the_slope_of_others():
    """A sequence's ratio to itself is one, its grad_logp known in each chunk alone, until a token elsewhere is NaN."""
    hidden_QD, linear, targets_QK, _ = parts_of()
    hidden_QD.data[0] = float("nan")
    reducer = TargetLogProb(targets_QK, 1.0, lambda logp_CK, chunk: (logp_CK - logp_CK).exp())
    logp_QK = linear_logp(hidden_QD, linear, reducer)
    of_hidden, of_weight = gradients((logp_QK - logp_QK.detach()).sum().exp(), hidden_QD, linear.weight)
    assert bool(of_hidden[0].isnan().all())
    assert bool(of_weight.isnan().all())


def test_half_precision_says_what_float32_says():
    hidden_QD, linear, targets_QK, wish_QK = parts_of(torch.float32)
    results = []
    for enabled in (False, True):
        for grad_logp in (None, slope_of(wish_QK)):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logp_QK = linear_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, grad_logp))
            assert logp_QK.dtype == torch.float32
            results.append(gradients(loss_of(logp_QK, wish_QK), hidden_QD, linear.weight))
    for of_hidden, of_weight in results[2:]:
        torch.testing.assert_close(of_hidden, results[0][0], rtol=0.1, atol=0.1)
        torch.testing.assert_close(of_weight, results[0][1], rtol=0.1, atol=0.2)


class Products(TorchDispatchMode):
    """The number types that matrices were multiplied in."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if "mm" in operator.__name__:
            self.dtypes.append(arguments[-1].dtype)
        return operator(*arguments, **(keywords or {}))


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("at_once", [False, True])
def test_half_precision_multiplies_every_chunk_in_it(at_once):
    hidden_QD, linear, targets_QK, wish_QK = parts_of(torch.float32)
    reducer = TargetLogProb(targets_QK, 1.0, slope_of(wish_QK) if at_once else None)
    with Products() as products:
        with torch.autocast("cpu", torch.bfloat16):
            logp_QK = linear_logp(hidden_QD, linear, reducer)
        loss_of(logp_QK, wish_QK).backward()
    chunks = len(chunks_of(POSITIONS, VOCABULARY))
    assert chunks > 1
    assert products.dtypes == [torch.bfloat16] * chunks * (3 if at_once else 4)  # logits are made again
    assert linear.weight.grad.dtype == torch.float32


class LogitsAlive(TorchDispatchMode):
    """The most tensors over the vocabulary that were alive at once, the weight's gradient apart."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = set(), 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        result = operator(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and result.shape in ((3, VOCABULARY), (2, VOCABULARY)):  # of a chunk
            storage = result.untyped_storage()
            if storage._cdata not in self.alive:
                self.alive.add(storage._cdata)
                weakref.finalize(storage, self.alive.discard, storage._cdata)
            self.most = max(self.most, len(self.alive))
        return result


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("at_once", [False, True])
def test_logits_of_one_chunk_are_alive_at_a_time(at_once):
    hidden_QD, linear, targets_QK, wish_QK = parts_of(torch.float32)
    with LogitsAlive() as logits:
        reducer = TargetLogProb(targets_QK, 1.0, slope_of(wish_QK) if at_once else None)
        loss_of(linear_logp(hidden_QD, linear, reducer), wish_QK).backward()
    assert logits.most == 1


def test_chunks_are_alike_and_cover_all():
    vocabulary = heads._LOGITS_PER_CHUNK // 100
    for positions in (0, 1, 99, 100, 101, 250, 301):
        chunks = chunks_of(positions, vocabulary)
        assert [place for chunk in chunks for place in range(chunk.start, chunk.stop)] == list(range(positions))
        sizes = {chunk.stop - chunk.start for chunk in chunks}
        assert max(sizes) <= 100
        assert max(sizes) - min(sizes) <= len(chunks)


def test_only_one_product_is_plain():
    assert is_plain(nn.Linear(2, 3, bias=False))
    assert not is_plain(nn.Linear(2, 3))
    assert not is_plain(nn.Sequential(nn.Linear(2, 3, bias=False)))


def test_memory_that_is_kept_is_used_again_and_grows():
    workspace, device = heads.Workspace(), torch.device("cpu")
    first = workspace.floats("logits", (4, 5), device)
    assert workspace.floats("logits", (2, 5), device).data_ptr() == first.data_ptr()
    assert workspace.floats("weights", (4, 5), device).data_ptr() != first.data_ptr()
    assert workspace.floats("logits", (8, 5), device).shape == (8, 5)
    copied = copy.deepcopy(workspace)
    assert copied.floats("logits", (8, 5), device).data_ptr() != workspace.floats("logits", (8, 5), device).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_are_in_float32_at_least(dtype):
    hidden_QD, linear, _, _ = parts_of(torch.float64)
    expected = hidden_QD @ linear.weight.t()
    logits = heads.Workspace().logits(hidden_QD.detach().to(dtype), linear.weight.detach().to(dtype))
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logits.double(), expected, rtol=0.05, atol=0.1)
