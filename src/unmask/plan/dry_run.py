"""Peak memory of a denoiser's passes, found by running them on tensors that have shapes and no numbers.

The code that is run is the code that trains, so what autograd keeps, what autocast copies and what the head chunks
are those of a real pass. Attention is one fused kernel, as on GPUs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unmask.denoisers.base import Denoiser, Guidance
from unmask.denoisers.head.chunks import chunk_positions
from unmask.denoisers.head.reducers import ContrastiveLogProb, LogitsReducer, TargetLogProb
from unmask.denoisers.head.vocabulary import POSITIONS
from unmask.denoisers.head.workspace import Workspace
from unmask.denoisers.key_values import CacheWindow, KeyValues
from unmask.denoisers.layers.recompute import recompute_layers
from unmask.plan.layout import WHOLE, Layout
from unmask.plan.networks import Shape, blank_denoiser, read_shape
from unmask.sampling.proposals import Propose
from unmask.sampling.unmasking import Measure, probability
from unmask.settings.recipe import TrainSettings


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that counts the bytes of live tensors made under it, and their peak between two marks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self._highest = 0
        self.peaks: list[int] = []
        self._references: dict[int, weakref.ref[Any]] = {}

    def mark(self) -> None:
        """End a stretch and record its peak."""
        self.peaks.append(self._highest)
        self._highest = self.alive

    def begin(self) -> None:
        """Forget the recorded stretches; tensors still alive stay counted."""
        self.peaks.clear()
        self._highest = self.alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _grouped(func, args, kwargs) if func is torch.ops.aten._grouped_mm.default else func(*args, **kwargs)
        theirs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in theirs:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._references:
            return

        def freed(_: Any) -> None:
            del self._references[key]
            self.alive -= size

        self._references[key] = weakref.ref(storage, freed)
        self.alive += size
        self._highest = max(self._highest, self.alive)


def _grouped(func: Any, args: Any, kwargs: Any) -> Tensor:
    """The experts' product, which without numbers exists in bf16 alone."""
    left, right, *others = args
    product: Tensor = func(left.bfloat16(), right.bfloat16(), *others, **kwargs)
    return product.to(left.dtype)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass whose peak memory is wanted: F forwards of L tokens, with A query positions each.

    scored: positions whose logits are made, over all forwards; targets: per position.
    layout: where it shards, the network computes in its own precision, and gradients are reduced group by group.
    """

    forwards: int
    length: int
    queries: int
    scored: int
    targets: int = 1
    blended: bool = False  # with the logits of the old policy
    separable: bool = False  # the head's gradient is made with its logits
    samples: bool = False  # a denoising step, else a pass over targets
    answers: bool = False  # a pass over targets without gradient
    cached: int = 0  # columns that a denoising step with a cache runs; 0: no cache, all of them
    temperature: float = 1.0  # of a denoising step: others than 1 scale a copy of the logits
    measure: Measure = probability  # of its confidences, which may read all logits
    guided: bool = False
    accumulates: bool = False  # gradients are there already
    layout: Layout = WHOLE

    @property
    def learns(self) -> bool:
        """Whether there is a gradient."""
        return not self.samples and not self.answers


def peak_bytes(model: str, settings: TrainSettings, work: Pass, model_format: str | None = None) -> int:
    """Bytes that a pass takes at its peak beyond weights, optimizer and gradients that were there before it."""
    return _peak(model, model_format, _TraceSettings.of(settings), work)


@dataclass(frozen=True)
class _TraceSettings:
    """What of the settings changes a pass (others must not make the traces of two recipes differ)."""

    param_dtype: str
    precision: str
    lora_rank: int
    gradient_checkpointing: bool
    four_bit: bool

    @staticmethod
    def of(settings: TrainSettings) -> _TraceSettings:
        return _TraceSettings(**{each.name: getattr(settings, each.name) for each in fields(_TraceSettings)})

    @property
    def train(self) -> TrainSettings:
        return TrainSettings(**{each.name: getattr(self, each.name) for each in fields(self)})


@cache
def _peak(model: str, model_format: str | None, settings: _TraceSettings, work: Pass) -> int:
    shape = read_shape(model, model_format)
    short = _fewer_chunks(shape, work)
    # A hidden state at a scored position takes little, and its gradient as much; its logits take the place of others.
    unseen = (work.scored - short.scored) * int(shape.config.hidden_size) * torch.float32.itemsize
    return int(_peak_of_layers(shape, settings, short) + unseen * (2 if work.learns else 1))


def _fewer_chunks(shape: Shape, work: Pass) -> Pass:
    """The pass with as many scored positions as fill three chunks of logits: more take time, and no more memory.

    Where sampling reads slices of the vocabulary, with as many as it does at a time.
    """
    enough = max(3 * chunk_positions(int(shape.config.vocab_size)), POSITIONS if work.samples else 0)
    return replace(work, scored=min(work.scored, enough))


def _peak_of_layers(shape: Shape, settings: _TraceSettings, work: Pass) -> int:
    """Layers are alike: a stretch of a pass grows by the same amount with each, so two short networks tell."""
    # The first and the last layer are not like the others.
    layers, few = int(shape.config.num_hidden_layers), int(getattr(shape.config, "first_k_dense_replace", 0)) + 3
    if layers <= few + 1:
        return max(_stretches(shape, settings, work))
    fewer, more = (_stretches(shape.with_layers(count), settings, work) for count in (few, few + 1))
    # Body forwards, head, last layer, ..., first layer, embedding: the ends of the list correspond.
    pairs = [*zip(fewer[:3], more[:3], strict=True), *zip(fewer[-2:], more[-2:], strict=True)]
    return max(low + (high - low) * (layers - few) for low, high in pairs)


def _stretches(shape: Shape, settings: _TraceSettings, work: Pass) -> list[int]:
    train = settings.train
    denoiser = blank_denoiser(shape, train)
    half = train.precision == "bf16"
    if work.layout.sharded and half:  # gathered weights are in the precision that computes
        denoiser.to(torch.bfloat16)
    denoiser.workspace = _OnGpu()
    with FakeTensorMode():
        _materialise(denoiser, gradients=work.accumulates and not work.layout.sharded)
        if train.gradient_checkpointing:
            recompute_layers(denoiser)
        live, cache = LiveBytes(), KeyValues()
        shards = _Shards(denoiser, work)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=half and not work.layout.sharded)
        with _marked(denoiser, live, shards), live, torch.set_grad_enabled(work.learns):
            for _ in range(2 if work.samples else 1):  # from the second step on, the memory for logits is there
                live.begin()
                shards.gather(denoiser, but=shards.layers)
                _run(denoiser, work, autocast, cache)
            shards.reduce(denoiser)  # what no layer holds: embedding, norm, head
        live.mark()
    return live.peaks


class _OnGpu(Workspace):
    """The head's memory as on a GPU, although the dry run's tensors say that they are on a CPU."""

    def slice_width(self, positions: int, device: torch.device) -> int:
        return super().slice_width(positions, torch.device("cuda"))


class _Shards:
    """What `fully_shard` allocates in an update, group of weights by group; nothing where they are not split.

    Gathered weights: the root's from beginning to end, a layer's while it runs and, in the backward pass, of the one
    that comes next too. Once a group has its gradients: a float32 copy of them all, which stays until the next group's,
    and this GPU's piece of the sum.
    """

    def __init__(self, denoiser: Denoiser, work: Pass) -> None:
        self.work, self.active = work, work.layout.sharded and work.learns
        self.layers = list(denoiser.model.base_model.layers)
        self.pieces: list[Tensor] = []
        self._gathered: dict[nn.Module, Tensor] = {}
        self._sent: Tensor | None = None

    def gather(self, module: nn.Module, *, but: Sequence[nn.Module] = ()) -> None:
        """Have all weights of a module, but those of modules within it."""
        if self.active and module not in self._gathered:
            inner = {id(weight) for each in but for weight in each.parameters()}
            weights = [weight for weight in module.parameters() if id(weight) not in inner]
            self._gathered[module] = torch.empty(sum(map(torch.numel, weights)), dtype=weights[0].dtype)

    def free(self, module: nn.Module) -> None:
        """Drop what was gathered."""
        self._gathered.pop(module, None)

    def backward_comes(self, place: int) -> None:
        """Gather the layer at a place, whose gradient is next, and the one before it."""
        for layer in self.layers[max(0, place - 1) : place + 1]:
            self.gather(layer)

    def reduce(self, module: nn.Module) -> None:
        """Send the gradients of a module's weights, and free both."""
        if not self.active:
            return
        self.free(module)
        trained = [weight for weight in module.parameters() if weight.grad is not None]
        count = sum(map(torch.numel, trained))
        self._sent = None
        self._sent = torch.empty(count, dtype=torch.float32)
        for weight in trained:
            weight.grad = None
        self.pieces.append(torch.empty(self.work.layout.piece(count), dtype=torch.float32))
        if self.work.accumulates:  # added to what is there
            self.pieces.clear()


def _materialise(denoiser: Denoiser, *, gradients: bool) -> None:
    """Give every meta tensor a device, and trained weights a gradient where there is one already."""
    for module in denoiser.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad)
                fake.grad = torch.empty_like(fake) if gradients and fake.requires_grad else None
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    if denoiser.model.config.tie_word_embeddings:
        denoiser.model.tie_weights()


@contextmanager
def _marked(denoiser: Denoiser, live: LiveBytes, shards: _Shards) -> Iterator[None]:
    """Mark when the body's forward pass is done, and when the gradient has come down to each layer."""

    def layer_is_done(layer: nn.Module) -> None:
        shards.reduce(layer)
        live.mark()
        shards.backward_comes(shards.layers.index(layer) - 1)

    def layer_begins(layer: Any, arguments: Any) -> None:
        shards.gather(layer)
        if arguments[0].requires_grad:
            arguments[0].register_hook(lambda gradient: layer_is_done(layer))

    def layer_ends(layer: Any, arguments: Any, output: Any) -> None:
        shards.free(layer)

    def head_is_done() -> None:
        live.mark()
        shards.backward_comes(len(shards.layers) - 1)

    def body_ends(module: Any, arguments: Any, output: Any) -> None:
        live.mark()
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda gradient: head_is_done())

    body = denoiser.model.base_model
    handles = [body.register_forward_hook(body_ends)]
    handles += [layer.register_forward_pre_hook(layer_begins) for layer in body.layers]
    handles += [layer.register_forward_hook(layer_ends) for layer in body.layers]
    yield
    for handle in handles:
        handle.remove()


def _run(denoiser: Denoiser, work: Pass, autocast: Any, cache: KeyValues) -> None:
    tokens_FL = torch.zeros(work.forwards, work.length, dtype=torch.long)
    attention_FL = torch.ones(work.forwards, work.length, dtype=torch.bool)
    query_FA = torch.zeros(work.forwards, work.queries, dtype=torch.long)
    guidance = Guidance(scale=1.0, prompt_FL=attention_FL) if work.guided else None
    other_model = denoiser if work.blended else None
    run = slice(work.length - work.cached, work.length)
    part = CacheWindow(cache=cache, columns=run, end=work.length) if work.cached else None
    attention = attention_FL[:, None, None, :] if work.samples else attention_FL  # as the sampler's `mask_of` has it
    selected_Q = torch.arange(work.scored) if work.scored < query_FA.numel() else None
    with autocast:
        (result, *_) = denoiser(tokens_FL, attention, query_FA, _reducer(work), guidance, other_model, part, selected_Q)
    if work.learns:
        result.sum().backward()


def _reducer(work: Pass) -> LogitsReducer:
    positions = work.scored
    if work.samples:
        uniform_QZ = torch.zeros(positions, work.targets, dtype=torch.float64)
        return Propose(
            temperature=work.temperature,
            mask_id=0,
            measure=work.measure,
            uniform_QZ=uniform_QZ,
            draws=work.targets,
            stride=work.targets,
        )
    if work.blended:
        return ContrastiveLogProb(torch.zeros(positions, dtype=torch.long), 1.0)
    grad_logp = (lambda logp_CK, chunk: torch.ones_like(logp_CK)) if work.separable else None
    return TargetLogProb(torch.zeros(positions, work.targets, dtype=torch.long), grad_logp=grad_logp)
