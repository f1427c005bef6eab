"""The head's written-out gradient is autograd's, whole or in chunks, made at once or later."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unmask.denoisers.head import chunks as heads
from unmask.denoisers.head.chunks import chunks_of
from unmask.denoisers.head.reducers import TargetLogProb, is_plain
from unmask.denoisers.head.workspace import Workspace


def target_logp(hidden_QD, linear, reducer):
    (logp_QK,) = reducer.from_head(hidden_QD, linear, Workspace())
    return logp_QK


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


def grad_logp_of(wish_QK):
    return lambda logp_CK, chunk: wish_QK[chunk] + 0.2 * logp_CK


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_target_log_prob_gradient_equals_autograd(temperature, chunked, at_once, monkeypatch):
    if chunked:
        monkeypatch.setattr(heads, "_LOGITS_PER_CHUNK", 3 * VOCABULARY)
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    reducer = TargetLogProb(targets_QK, temperature, grad_logp_of(wish_QK) if at_once else None)
    ours = target_logp(hidden_QD, linear, reducer)
    theirs = (linear(hidden_QD) / temperature).log_softmax(1).gather(1, targets_QK)
    torch.testing.assert_close(ours, theirs)
    expected = gradients(loss_of(theirs, wish_QK), hidden_QD, linear.weight)
    for our, their in zip(gradients(loss_of(ours, wish_QK), hidden_QD, linear.weight), expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_target_log_prob_of_frozen_inputs_has_no_gradient(frozen):
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    (hidden_QD if frozen == "hidden" else linear.weight).requires_grad_(False)
    trained = linear.weight if frozen == "hidden" else hidden_QD
    ours = target_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, grad_logp_of(wish_QK)))
    theirs = linear(hidden_QD).log_softmax(1).gather(1, targets_QK)
    (our,), (their,) = gradients(loss_of(ours, wish_QK), trained), gradients(loss_of(theirs, wish_QK), trained)
    torch.testing.assert_close(our, their)


@pytest.mark.usefixtures("in_chunks")
def test_target_log_prob_refuses_a_loss_other_than_grad_logp():
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    logp_QK = target_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, grad_logp_of(wish_QK)))
    with pytest.raises(RuntimeError):
        loss_of(logp_QK, wish_QK + 1).backward()


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["hidden", "weight"])
def test_target_log_prob_passes_nan_and_inf_to_gradients(where, value):
    hidden_QD, linear, targets_QK, wish_QK = parts_of()
    (hidden_QD if where == "hidden" else linear.weight).data[0, 0] = value
    logp_QK = target_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, grad_logp_of(wish_QK)))
    of_hidden, of_weight = gradients(loss_of(logp_QK, wish_QK), hidden_QD, linear.weight)
    assert not bool(of_hidden.isfinite().all())
    assert not bool(of_weight.isfinite().all())


@pytest.mark.usefixtures("in_chunks")
def test_target_log_prob_accepts_nan_gradients_of_other_chunks():
    """A sequence's ratio to itself is one, its grad_logp known in each chunk alone, until a token elsewhere is NaN."""
    hidden_QD, linear, targets_QK, _ = parts_of()
    hidden_QD.data[0] = float("nan")
    reducer = TargetLogProb(targets_QK, 1.0, lambda logp_CK, chunk: (logp_CK - logp_CK).exp())
    logp_QK = target_logp(hidden_QD, linear, reducer)
    of_hidden, of_weight = gradients((logp_QK - logp_QK.detach()).sum().exp(), hidden_QD, linear.weight)
    assert bool(of_hidden[0].isnan().all())
    assert bool(of_weight.isnan().all())


def test_target_log_prob_in_half_precision_is_near_float32():
    hidden_QD, linear, targets_QK, wish_QK = parts_of(torch.float32)
    results = []
    for enabled in (False, True):
        for grad_logp in (None, grad_logp_of(wish_QK)):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logp_QK = target_logp(hidden_QD, linear, TargetLogProb(targets_QK, 1.0, grad_logp))
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
def test_target_log_prob_multiplies_in_half_precision(at_once):
    hidden_QD, linear, targets_QK, wish_QK = parts_of(torch.float32)
    reducer = TargetLogProb(targets_QK, 1.0, grad_logp_of(wish_QK) if at_once else None)
    with Products() as products:
        with torch.autocast("cpu", torch.bfloat16):
            logp_QK = target_logp(hidden_QD, linear, reducer)
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
def test_target_log_prob_keeps_logits_of_one_chunk_alive(at_once):
    hidden_QD, linear, targets_QK, wish_QK = parts_of(torch.float32)
    with LogitsAlive() as logits:
        reducer = TargetLogProb(targets_QK, 1.0, grad_logp_of(wish_QK) if at_once else None)
        loss_of(target_logp(hidden_QD, linear, reducer), wish_QK).backward()
    assert logits.most == 1


def test_chunks_of_covers_all_in_even_chunks():
    vocabulary = heads._LOGITS_PER_CHUNK // 100
    for positions in (0, 1, 99, 100, 101, 250, 301):
        chunks = chunks_of(positions, vocabulary)
        assert [place for chunk in chunks for place in range(chunk.start, chunk.stop)] == list(range(positions))
        sizes = {chunk.stop - chunk.start for chunk in chunks}
        assert max(sizes) <= 100
        assert max(sizes) - min(sizes) <= len(chunks)


def test_is_plain_of_one_matrix_alone():
    assert is_plain(nn.Linear(2, 3, bias=False))
    assert not is_plain(nn.Linear(2, 3))
    assert not is_plain(nn.Sequential(nn.Linear(2, 3, bias=False)))


def test_workspace_buffers_are_reused_and_grow():
    workspace, device = Workspace(), torch.device("cpu")
    first = workspace.floats("logits", (4, 5), device)
    assert workspace.floats("logits", (2, 5), device).data_ptr() == first.data_ptr()
    assert workspace.floats("weights", (4, 5), device).data_ptr() != first.data_ptr()
    assert workspace.floats("logits", (8, 5), device).shape == (8, 5)
    copied = copy.deepcopy(workspace)
    assert copied.floats("logits", (8, 5), device).data_ptr() != workspace.floats("logits", (8, 5), device).data_ptr()


def test_workspace_gives_a_buffer_back_before_it_makes_a_larger_one(monkeypatch):
    workspace, device, made = Workspace(), torch.device("cpu"), torch.empty
    smaller = weakref.ref(workspace.floats("logits", (4, 5), device).untyped_storage())
    gone_by_then = []

    def empty(*arguments, **options):
        gone_by_then.append(smaller() is None)
        return made(*arguments, **options)

    monkeypatch.setattr(torch, "empty", empty)
    workspace.floats("logits", (8, 5), device)
    assert gone_by_then == [True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_workspace_logits_are_in_float32_at_least(dtype):
    hidden_QD, linear, _, _ = parts_of(torch.float64)
    expected = hidden_QD @ linear.weight.t()
    logits = Workspace().logits(hidden_QD.detach().to(dtype), linear.weight.detach().to(dtype))
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(logits.double(), expected, rtol=0.05, atol=0.1)
