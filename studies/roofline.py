"""Against the machine: its two ceilings, and how near our rollout, our update and their operations come to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import rollouts
import updates
from batches import diffu_grpo_batch
from core import Calls, compare
from toy import Sizes, toy_denoiser
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.chunks import chunks_of
from unmask.denoisers.head.vocabulary import HeadLogits
from unmask.denoisers.layers.compiled import compile_layers
from unmask.types import ScoringBatch

LARGE, SMALL = 126_464, 2_048  # LLaDA's vocabulary, and one with LLaDA-8B's share of head and body at our toy's width
_BYTES = 4  # of a float32
_SOFTMAX_FLOPS = 5  # a logit: the largest, less it, its exponential, their sum, divided


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one core reaches: FLOP/s of large products in float32, bytes/s read and written by a large copy."""

    peak: float
    bandwidth: float

    def bound(self, intensity: float) -> float:
        """FLOP/s that a given number of FLOPs a byte allows."""
        return min(self.peak, self.bandwidth * intensity)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of a piece of work: seconds, and the FLOPs of its products."""

    name: str
    seconds: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A rollout or an update, in parts."""

    name: str
    parts: tuple[Part, ...]
    by_round: float  # time over FLOPs / the peak of the same seconds: median

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(part.seconds for part in self.parts)

    @property
    def flops(self) -> float:
        """Of all parts."""
        return sum(part.flops for part in self.parts)

    def factor(self, machine: Machine) -> float:
        """Time over FLOPs / the best peak."""
        return self.seconds * machine.peak / self.flops


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation: its FLOPs, the bytes that it must read and write, its seconds; `kind` groups them in pictures."""

    kind: str
    label: str
    flops: float
    bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds


def flops_of(call: Callable[[], Any]) -> float:
    """FLOPs of the products of a call; attention is counted where it is written out as two of them."""
    unknown = {torch.ops.aten.addmm_: _product_flops}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        call()
    return float(counter.get_total_flops())


def _product_flops(_into: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * int(left[0] * left[1] * right[1])


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


# ---- the ceilings ----


class Ceilings:
    """The best that large products and copies have reached so far; measured anew beside each piece of work.

    A shared machine is not equally fast at all times.
    """

    def __init__(self) -> None:
        self.factors = [torch.randn(size, size) for size in (512, 1024, 2048)]
        self.source = torch.randn(1 << 26)
        self.target = torch.zeros_like(self.source)
        self.peak = self.bandwidth = 0.0
        for _ in range(5):
            self.now()

    def now(self) -> float:
        """FLOP/s of products at this moment: the best of six."""
        twice = [partial(torch.mm, square, square) for square in self.factors for _ in "12"]
        rates = [2 * len(product.args[0]) ** 3 / _seconds(product) for product in twice]
        self.peak = max(self.peak, *rates)
        copied = 2 * self.source.nbytes / _seconds(partial(self.target.copy_, self.source))
        self.bandwidth = max(self.bandwidth, copied)
        return max(rates)

    def product(self) -> None:
        """One of them, to be timed."""
        torch.mm(self.factors[-1], self.factors[-1])

    @property
    def machine(self) -> Machine:
        """As known by now."""
        return Machine(peak=self.peak, bandwidth=self.bandwidth)


# ---- a rollout in parts ----


class _Watch:
    """Seconds of a rollout in the layers and in the head's products."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.body_seconds = self.head_seconds = self.mark = 0.0
        self.positions = 0
        denoiser.model.base_model.register_forward_pre_hook(self._begin)
        denoiser.model.base_model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self.mark = time.process_time()

    def _end(self, *_: Any) -> None:
        self.body_seconds += time.process_time() - self.mark

    def around(self, call: Callable[[], Any]) -> tuple[float, float, float]:
        """Seconds of the call: in layers, in the head's products, elsewhere."""
        self.body_seconds = self.head_seconds = 0.0
        self.positions = 0
        write = HeadLogits._write

        def timed(logits: HeadLogits, tokens: slice, logits_CS: Tensor) -> None:
            mark = time.process_time()
            write(logits, tokens, logits_CS)
            self.head_seconds += time.process_time() - mark
            self.positions += logits.positions if tokens.start == 0 else 0

        with patch.object(HeadLogits, "_write", timed):
            whole = _seconds(call)
        return self.body_seconds, self.head_seconds, whole - self.body_seconds - self.head_seconds


def rollout_piece(
    sizes: Sizes, temperature: float, rounds: int, ceilings: Ceilings, *, compiled: bool = False
) -> Piece:
    """Our sampler's rollout, timed from within."""
    bench = rollouts.Bench(sizes, temperature, brief=False)
    call, watch = bench.ours(), _Watch(bench.denoiser)
    whole = flops_of(call)
    if compiled:
        compile_layers(bench.denoiser)
        call()
    found, peaks = [], []
    for _ in range(rounds):
        before = ceilings.now()
        found.append(watch.around(call))
        peaks.append((before + ceilings.now()) / 2)
    body, head, rest = (median(column) for column in zip(*found, strict=True))
    by_round = median(sum(parts) * peak / whole for parts, peak in zip(found, peaks, strict=True))
    head_flops = 2 * watch.positions * _width(bench.denoiser) * sizes.vocabulary
    return Piece(
        name=f"rollout V={sizes.vocabulary:,} T={temperature:g}, {sizes.rows} rows{', compiled' if compiled else ''}",
        by_round=by_round,
        parts=(
            Part(name="body", seconds=body, flops=whole - head_flops),
            Part(name="head product", seconds=head, flops=head_flops),
            Part(name="softmax, draws, the loop", seconds=rest, flops=0.0),
        ),
    )


def _width(denoiser: Denoiser) -> int:
    return int(denoiser.model.config.hidden_size)


# ---- an update in parts ----


def update_piece(sizes: Sizes, *, shared: bool, rounds: int, ceilings: Ceilings) -> Piece:
    """Our update of diffu-GRPO, beside its layers alone and the head's products alone."""
    bench = updates.Bench(sizes)
    batch = updates.fully_masked(bench, shared=shared)
    whole = bench.ours(diffu_grpo_batch(batch))
    body = _body_alone(bench, batch)
    positions = len(batch.inputs_FL) * sizes.completion
    products = _products_alone(bench.denoiser, positions)
    calls: Calls = {"whole": whole, "body": body, "products": products, "peak": ceilings.product}
    timed = compare(calls, {name: partial(flops_of, call) for name, call in calls.items()}, rounds)
    flops: dict[str, float] = timed.outputs
    body_seconds, product_seconds = timed.typical("body"), timed.typical("products")
    rest = timed.typical("whole") - body_seconds - product_seconds
    rates = [flops["peak"] / seconds for seconds in timed.seconds["peak"]]
    paired = zip(timed.seconds["whole"], rates, strict=True)
    by_round = median(seconds * peak / flops["whole"] for seconds, peak in paired)
    return Piece(
        name=f"update V={sizes.vocabulary:,}, {sizes.rows} samples{', one forward' if shared else ''}",
        by_round=by_round,
        parts=(
            Part(name="body", seconds=body_seconds, flops=flops["whole"] - flops["products"]),
            Part(name="head product", seconds=product_seconds, flops=flops["products"]),
            Part(name="softmax, loss", seconds=rest, flops=0.0),
        ),
    )


def _body_alone(bench: updates.Bench, batch: ScoringBatch) -> Callable[[], None]:
    query_FA = torch.arange(bench.sizes.prompt, batch.inputs_FL.shape[1]).expand(len(batch.inputs_FL), -1)
    position_FL = torch.arange(batch.inputs_FL.shape[1])[None]
    network = bench.denoiser.model.base_model
    gradient_QD = torch.randn(query_FA.numel(), _width(bench.denoiser))

    def run() -> None:
        bench.clear()
        answer = network(input_ids=batch.inputs_FL, position_ids=position_FL, use_cache=False, query_columns=query_FA)
        answer.last_hidden_state.flatten(0, 1).backward(gradient_QD)

    return run


def _products_alone(denoiser: Denoiser, positions: int) -> Callable[[], None]:
    """Of a chunk at a time: logits, and the gradients of hidden states and of the weight."""
    weight_VD = denoiser.model.get_output_embeddings().weight.detach()
    hidden_QD = torch.randn(positions, weight_VD.shape[1])

    def run() -> None:
        of_weight_VD = None
        for chunk in chunks_of(positions, len(weight_VD)):
            logits_CV = denoiser.workspace.logits(hidden_QD[chunk], weight_VD)
            torch.mm(logits_CV, weight_VD)
            product = torch.mm if of_weight_VD is None else of_weight_VD.addmm_
            of_weight_VD = product(logits_CV.t(), hidden_QD[chunk])

    return run


def pieces(rounds: int, ceilings: Ceilings, *, short: bool) -> list[Piece]:
    """Those of the table."""
    large = Sizes(vocabulary=LARGE, rows=6, prompt=64, completion=64, steps=2 if short else 16)
    small, few, many = replace(large, vocabulary=SMALL), replace(large, rows=2), replace(large, rows=24)
    cases = [(few, 1.0), (small, 1.0)] if short else [(large, 0.0), (large, 1.0), (few, 1.0), (many, 1.0), (small, 1.0)]
    found = [rollout_piece(sizes, temperature, rounds, ceilings) for sizes, temperature in cases]
    if not short:
        found += [rollout_piece(sizes, 1.0, rounds, ceilings, compiled=True) for sizes in (large, many)]
    for sizes in (updates.LARGE, updates.SMALL):
        for shared in (True,) if short else (False, True):
            found.append(update_piece(sizes, shared=shared, rounds=2 * rounds + 1, ceilings=ceilings))
    return found


# ---- operations ----

_Timed = tuple[str, str, Callable[[], Any], float, float]  # kind, label, call, FLOPs, bytes


def operations(rounds: int) -> list[Operation]:
    """Layers, attention, the head's products and the softmax, each at several sizes, without gradient."""
    found: list[_Timed] = []
    denoiser = toy_denoiser(Sizes(vocabulary=SMALL, rows=1, prompt=1, completion=1))
    for rows, length in ((1, 128), (6, 128), (6, 512)):
        found.append(_layer(denoiser, rows, length))
        found.append(_attention(rows, length))
    weight_VD = torch.randn(LARGE, _width(denoiser))
    for positions in (4, 16, 64, 128):
        found.extend(_head(weight_VD, positions, gradients=positions == 128))
    found.append(_softmax(64))
    calls = {f"{kind} {label}": call for kind, label, call, _, _ in found}
    with torch.no_grad():
        timed = compare(calls, {}, rounds)
    return [
        Operation(kind=kind, label=label, flops=flops, bytes=size, seconds=timed.typical(f"{kind} {label}"))
        for kind, label, _, flops, size in found
    ]


def _layer(denoiser: Denoiser, rows: int, length: int) -> _Timed:
    """Layer 0 as a denoiser runs it: its weights read, its input read and its output written."""
    layer, hidden_FLD = denoiser.model.base_model.layers[0], torch.randn(rows, length, _width(denoiser))
    position_FL = torch.arange(length).expand(rows, -1)
    rotation = denoiser.model.base_model.rotary_emb(hidden_FLD, position_FL)
    call = partial(layer, hidden_FLD, position_embeddings=rotation, query_columns=None)
    size = sum(weight.nbytes for weight in layer.parameters()) + 2 * hidden_FLD.nbytes
    return "layer", f"{rows}×{length} tokens", call, flops_of(call), size


def _attention(rows: int, length: int) -> _Timed:
    query, key, value = (torch.randn(rows, 8, length, 32) for _ in range(3))
    call = partial(nn.functional.scaled_dot_product_attention, query, key, value)
    return "attention", f"{rows}×{length} tokens", call, 4 * rows * 8 * length**2 * 32, 4 * query.nbytes


def _head(weight_VD: Tensor, positions: int, *, gradients: bool) -> list[_Timed]:
    hidden_CD, logits_CV = torch.randn(positions, weight_VD.shape[1]), torch.randn(positions, len(weight_VD))
    flops, size = 2.0 * positions * weight_VD.numel(), weight_VD.nbytes + hidden_CD.nbytes + logits_CV.nbytes
    found = [
        ("head product", f"{positions} positions", partial(nn.functional.linear, hidden_CD, weight_VD), flops, size)
    ]
    if gradients:
        of_weight_VD = torch.zeros_like(weight_VD)
        into = partial(of_weight_VD.addmm_, logits_CV.t(), hidden_CD)
        found.append(("head gradient", "of hidden states", partial(torch.mm, logits_CV, weight_VD), flops, size))
        found.append(("head gradient", "of the weight", into, flops, size + weight_VD.nbytes))  # read and written
    return found


def _softmax(positions: int) -> _Timed:
    logits_CV = torch.randn(positions, LARGE)
    flops, size = float(_SOFTMAX_FLOPS * logits_CV.numel()), 2 * _BYTES * logits_CV.numel()
    return "softmax", f"{positions} positions", partial(logits_CV.softmax, 1), flops, size
