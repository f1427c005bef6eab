"""Fast layers go in and out, survive copies and pickles, and tell why a network cannot have them; in any order with
recompute_layers, compile_layers and FSDP2's fully_shard."""

import copy
import logging
import pickle
import re

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig, Olmo2Config, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from helpers.shapes import SHARED
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.layers import fast_layers as layers
from unmask.denoisers.layers.compiled import compile_layers
from unmask.denoisers.layers.fast_layers import (
    fast_layers,
    fast_layers_or_log,
    has_fast_layers,
    remove_fast_layers,
    why_no_fast_layers,
)
from unmask.denoisers.layers.recompute import recompute_layers
from unmask.errors import UserError


def canvas():
    tokens_FL = torch.randint(3, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    return tokens_FL, torch.arange(9) >= torch.tensor([[0], [2], [4]])


def llama(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(LlamaConfig(**SHARED | changes)).eval()


def classes(network):
    return [type(module) for module in network.modules()]


def outcome(network):
    """Logits at some columns, and the gradients of all weights."""
    tokens_FL, attention_FL = canvas()
    denoiser = Denoiser(network, mask_id=2, eos_id=1)
    (logits,) = denoiser(tokens_FL, attention_FL, torch.tensor([[8, 5], [6, 7], [4, 4]]), AllLogits())
    denoiser.zero_grad()
    logits.square().sum().backward()
    gradients = [weight.grad for weight in denoiser.parameters()]
    return [logits.detach(), *(each.full_tensor() if isinstance(each, DTensor) else each for each in gradients)]


def equal(ours, theirs):
    return all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True))


def test_fast_layers_is_idempotent():
    network = llama()
    assert not has_fast_layers(network)
    fast_layers(network)
    kinds, first = classes(network), outcome(network)
    fast_layers(network)
    assert has_fast_layers(network)
    assert classes(network) == kinds
    assert equal(outcome(network), first)


def test_remove_fast_layers_restores_classes_and_outputs():
    network = llama()
    theirs = copy.deepcopy(network)
    fast_layers(network)
    assert classes(network) != classes(theirs)
    remove_fast_layers(network)
    assert not has_fast_layers(network)
    assert classes(network) == classes(theirs)
    assert [vars(module).keys() for module in network.modules()] == [vars(each).keys() for each in theirs.modules()]
    assert network.state_dict().keys() == theirs.state_dict().keys()
    assert equal(network.state_dict().values(), theirs.state_dict().values())
    assert equal(outcome(network), outcome(theirs))
    remove_fast_layers(network)  # nothing to remove


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])  # noqa: S301
@pytest.mark.parametrize("recomputed", [False, True])
def test_fast_layers_survive_copies_and_pickles(copied, recomputed):
    network = llama()
    fast_layers(network)
    if recomputed:
        recompute_layers(Denoiser(network, mask_id=2, eos_id=1))
    first = outcome(network)
    again = copied(network)
    assert has_fast_layers(again)
    assert equal(outcome(again), first)
    with torch.no_grad():
        for weight in again.base_model.layers.parameters():
            weight.add_(1)
    assert equal(outcome(network), first)  # nothing is shared
    assert not torch.equal(outcome(again)[0], first[0])
    remove_fast_layers(again)
    assert has_fast_layers(network)


def renamed(network):
    """As libraries do that put a class of their own over a layer's."""
    for layer in network.base_model.layers:
        layer.__class__ = type(f"Wrapped{type(layer).__name__}", (type(layer),), {})


@pytest.mark.parametrize("first", [True, False])
def test_fast_layers_recognise_renamed_subclasses(first):
    network, plain = llama(), llama()
    fast_layers(plain)
    if first:
        fast_layers(network)
    renamed(network)
    assert why_no_fast_layers(network) is None
    fast_layers(network)
    assert has_fast_layers(network)
    assert equal(outcome(network), outcome(plain))


def test_remove_fast_layers_refuses_below_another_class():
    network = llama()
    fast_layers(network)
    renamed(network)
    with pytest.raises(UserError, match=r"^fast layers cannot be removed: WrappedLlamaDecoderLayer was put over them"):
        remove_fast_layers(network)
    assert has_fast_layers(network)


@pytest.fixture
def mesh():
    """A world of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def shard(network, mesh):
    for part in (*network.base_model.layers, network.base_model):
        fully_shard(part, mesh=mesh)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("order", ["fast first", "fast last"])
def test_fast_layers_and_fully_shard_commute(order, recomputed, mesh):
    expected = llama()
    fast_layers(expected)
    network = llama()
    if order == "fast first":
        fast_layers(network)
    if recomputed:
        recompute_layers(Denoiser(network, mask_id=2, eos_id=1))
    shard(network, mesh)
    fast_layers(network)
    assert has_fast_layers(network)
    assert all(isinstance(layer, FSDPModule) for layer in network.base_model.layers)
    assert equal(outcome(network), outcome(expected))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
@pytest.mark.parametrize("order", ["recompute fast compile", "compile recompute fast"])
def test_fast_layers_recompute_and_compile_commute(order):
    network, expected = llama(), llama()
    denoiser = Denoiser(network, mask_id=2, eos_id=1)
    steps = {
        "fast": lambda: fast_layers(network),
        "recompute": lambda: recompute_layers(denoiser),
        "compile": lambda: compile_layers(denoiser, backend="aot_eager"),
    }
    torch._dynamo.reset()
    for step in order.split():
        steps[step]()
    assert has_fast_layers(network)
    fast_layers(expected)
    for ours, theirs in zip(outcome(network), outcome(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def with_wrapped_forward(network):
    network.base_model.layers[-1].forward = network.base_model.layers[-1].forward
    return network


def with_own_forward(network):
    class Mine(LlamaDecoderLayer):
        def forward(self, hidden_states, **options):
            return hidden_states

    network.base_model.layers[-1].__class__ = Mine
    return network


def with_hook(network):
    network.base_model.layers[-1].mlp.register_forward_hook(lambda *given: None)
    return network


def flexible(network):
    network.config._attn_implementation = "flex_attention"
    return network


UNKNOWN = {
    "GPT2Model has no list of decoder layers": lambda: AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=4, eos_token_id=1, bos_token_id=None)
    ),
    "BertModel has no list of decoder layers": lambda: AutoModelForCausalLM.from_config(
        BertConfig(**SHARED | {"is_causal": True}, is_decoder=True)
    ),
    "Olmo2DecoderLayer is none of the known decoder layers": lambda: AutoModelForCausalLM.from_config(
        Olmo2Config(**SHARED)
    ),
    "Qwen2DecoderLayer attends to a sliding window": lambda: AutoModelForCausalLM.from_config(
        Qwen2Config(
            **SHARED,
            use_sliding_window=True,
            sliding_window=2,
            layer_types=["full_attention", "full_attention", "sliding_attention"],
        )
    ),
    "attention 'flex_attention' is none of sdpa, eager": lambda: flexible(llama()),
    "the forward of a LlamaDecoderLayer was replaced: call fast_layers before": lambda: with_wrapped_forward(llama()),
    "Mine overrides the forward of LlamaDecoderLayer": lambda: with_own_forward(llama()),
    "LlamaMLP in LlamaDecoderLayer has forward hooks": lambda: with_hook(llama()),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_fast_layers_refuse_unknown_networks_with_the_reason(reason, caplog):
    network = UNKNOWN[reason]()
    before = classes(network)
    assert why_no_fast_layers(network).startswith(reason)
    with pytest.raises(UserError, match=f"^no fast layers: {re.escape(reason)}"):
        fast_layers(network)
    layers._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="unmask"):
        fast_layers_or_log(network)
        fast_layers_or_log(network)
    assert len(caplog.messages) == 1
    assert reason in caplog.text
    assert "\n" not in caplog.messages[0]
    assert classes(network) == before
    assert not has_fast_layers(network)
