"""Compiled layers: the same tokens and gradients, one graph for all alike layers and a batch's shape."""

import pytest
import torch
from torch._dynamo.utils import counters

from helpers.small import MASK, prompts_of, small_denoiser
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.denoisers.layers.compiled import compile_layers
from unmask.denoisers.layers.recompute import recompute_layers
from unmask.sampling.sampler import Sampler
from unmask.uniforms import Uniforms


@pytest.fixture
def graphs():
    """How many graphs were made since."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize("batch", [0, 3])
def test_compile_layers_samples_the_same_tokens_in_few_graphs(batch, graphs):
    sampler = Sampler(max_new_tokens=16, block_length=4, steps=16, temperature=1.0, stop_at_end=True, batch=batch)
    prompts, denoiser = prompts_of([[1, 2, 3], [4, 5, 6]], samples=range(3)), small_denoiser(seed=5)
    expected = sampler(denoiser, prompts, Uniforms()).tokens_NL
    compile_layers(denoiser, backend="aot_eager")
    assert torch.equal(sampler(denoiser, prompts, Uniforms()).tokens_NL, expected)
    assert not counters["graph_break"]
    assert 1 <= graphs() <= 2  # one number of samples, then any


def test_compile_layers_steps_of_a_block_share_a_graph(graphs):
    sampler = Sampler(max_new_tokens=16, block_length=8, steps=16, temperature=1.0)
    denoiser = small_denoiser()
    compile_layers(denoiser, backend="aot_eager")
    sampler(denoiser, prompts_of([[1, 2, 3]]), Uniforms())
    assert graphs() == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
@pytest.mark.parametrize("recomputed", [False, True])
def test_compile_layers_gradients_are_the_same(recomputed, graphs):
    """Of however many columns are asked."""
    tokens_FL = torch.tensor([[1, 2, MASK, MASK, MASK]])
    for asked in ([2, 3], [4, 2, 3], [4]):
        query_FA, results = torch.tensor([asked]), []
        for compiled in (False, True):
            denoiser = small_denoiser()
            if compiled and recomputed:
                recompute_layers(denoiser)
            if compiled:
                compile_layers(denoiser, backend="aot_eager")
            (logp,) = denoiser(tokens_FL, None, query_FA, TargetLogProb(torch.arange(len(asked))[:, None]))
            results.append(torch.autograd.grad(logp.sum(), list(denoiser.parameters())))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert graphs() == 1
