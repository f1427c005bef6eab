"""The parts of the GPU command: checks against the CPU, rollouts, updates and published code, timed by the wall."""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from batches import diffu_grpo_batch, scoring_batch_of
from gpu_sizes import GpuSizes
from peer_updates import d1_loss
from peers import load_functions
from toy import PeerView
from unmask.denoisers.adapters import add_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.formats import format_of
from unmask.denoisers.head.workspace import Workspace
from unmask.denoisers.layers.compiled import compile_layers
from unmask.denoisers.layers.fast_layers import fast_layers
from unmask.distributed import World
from unmask.objective.objective import Objective
from unmask.plan.dry_run import Pass, peak_bytes
from unmask.plan.gpus import PEAKS
from unmask.plan.networks import size_of
from unmask.plan.work import forward_flops
from unmask.sampling.sampler import Sampler
from unmask.settings.recipe import TrainSettings
from unmask.types import Prompts, ScoringBatch
from unmask.uniforms import Uniforms

ROOT = Path(__file__).parents[1]


def setting(sizes: GpuSizes) -> dict[str, Any]:
    """Where it was measured, and of what."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    device = torch.cuda.get_device_name() if sizes.device == "cuda" else platform.machine()
    return {"device": device, "torch": torch.__version__, "commit": commit.stdout.strip() or "unknown"}


def peak_of(device: str) -> float | None:
    """The device's peak FLOP/s in bf16 as its maker states it; None where that is not known."""
    words = device.lower().replace(" ", "")
    return next((peaks[0] * 1e12 for name, peaks in PEAKS.items() if name in words), None)


# ---- correctness ----


def correctness(sizes: GpuSizes) -> dict[str, Any]:
    """Each check of tests/gpu: true, false, or what was raised."""
    import checks

    found: dict[str, Any] = {}
    wanted = checks.CHEAP | checks.COSTLY
    for name, check in wanted.items():
        if name not in (sizes.checks or wanted):
            continue
        try:
            found[name] = check(sizes.device)
        except Exception as error:  # noqa: BLE001 - one check must not hide the others
            found[name] = f"{type(error).__name__}: {error}"[:300]
    for precision in ("fp32", "bf16") if sizes.device == "cuda" else ():
        found[f"training_runs, {precision}"] = _training_runs(sizes.device, precision)
    return {"checks": found}


def _training_runs(device: str, precision: str) -> bool | str:
    """In a process of its own, which leaves nothing on the device."""
    code = f"import sys, checks; sys.exit(not checks.training_runs({device!r}, {precision!r}))"
    paths = [str(ROOT / "tests" / "gpu"), str(ROOT / "tests")]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603
    return done.returncode == 0 or done.stderr[-300:]


# ---- figures ----


class Bench:
    """The network as a recipe trains it (a bf16 base, adapters, autocast), and what is measured with it."""

    def __init__(self, sizes: GpuSizes) -> None:
        self.sizes, self.device = sizes, torch.device(sizes.device)
        self.peak = peak_of(setting(sizes)["device"])
        self.config = tempfile.TemporaryDirectory()  # whose config.json the plan reads
        self.train = TrainSettings(param_dtype="bf16", precision="bf16", lora_rank=sizes.lora_rank)
        self.world = World.single(self.device, "bf16")

    def build(self) -> dict[str, Any]:
        """The network, its random weights made where they stay."""
        sizes = self.sizes
        (Path(self.config.name) / "config.json").write_text(json.dumps(sizes.config))
        layout = format_of(sizes.config)
        if layout is None:
            raise ValueError("the sizes' config.json is of no known format")
        with _on(self.device, torch.bfloat16):
            torch.manual_seed(0)
            network = layout.network(layout.network_config(sizes.config))
        fast_layers(network)
        self.denoiser = Denoiser(network, mask_id=sizes.mask_id, eos_id=sizes.eos_id).eval()
        add_adapters(self.denoiser, sizes.lora_rank, self.train.lora_alpha)
        self.denoiser.to(self.device)
        self.size = size_of(self.config.name, "bf16", sizes.lora_rank)
        self.objective = Objective(terms=(), denoiser=self.denoiser, world=self.world)
        held = sum(weight.nbytes for weight in self.denoiser.parameters())
        return {
            "parameters": self.size.parameters,
            "weights_GiB": _gib(held),
            "planned_weights_GiB": _gib(self.size.weight_bytes),
        }

    # -- rollouts --

    def rollout(self, rows: int) -> dict[str, Any]:
        """The exact sampler on so many prompts at once: one block of completions."""
        sizes = self.sizes
        sampler = Sampler(max_new_tokens=sizes.completion, block_length=sizes.completion, steps=sizes.steps)
        prompts, length = self._prompts(rows), sizes.prompt + sizes.completion

        def sample(sampler: Sampler = sampler) -> None:
            with self.world.autocast():
                sampler(self.denoiser, prompts, Uniforms().key(1))

        brief = replace(sampler, steps=2)  # the shapes of all layers but the last
        figures = self._timed(sample, rows * sizes.completion, warm_up=lambda: sample(brief))
        each = sizes.completion // sizes.steps
        masked = range(sizes.completion, 0, -each)
        flops = rows * sum(forward_flops(self.size, length, count, count) for count in masked)
        work = Pass(
            forwards=rows,
            length=length,
            queries=sizes.completion,
            scored=rows * sizes.completion,
            samples=True,
        )
        return figures | self._rate(flops, figures) | self._planned(work)

    def llada_rollout(self, checkout: Path, rows: int) -> dict[str, Any]:
        """LLaDA's generate.py on the same network and prompts."""
        sizes = self.sizes
        generate = load_functions(
            checkout / "generate.py", "add_gumbel_noise", "get_num_transfer_tokens", "generate"
        ).generate
        view, tokens_NP = PeerView(self.denoiser), self._prompts(rows).tokens_NP

        def sample(steps: int = sizes.steps) -> None:
            lengths = {"gen_length": sizes.completion, "block_length": sizes.completion, "steps": steps}
            with self.world.autocast():
                generate(view, tokens_NP, temperature=0.0, mask_id=sizes.mask_id, **lengths)

        return self._timed(sample, rows * sizes.completion, warm_up=lambda: sample(2))

    @property
    def ways(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """How layers run besides eagerly: installers, in the order in which they may follow each other."""
        return {"compiled": self._compile, "CUDA graphs": self._graph}

    def _compile(self) -> dict[str, Any]:
        compile_layers(self.denoiser, self.sizes.backend)
        return {}

    def _graph(self) -> dict[str, Any]:
        torch.compiler.reset()
        for layer in self.denoiser.model.base_model.layers[:-1]:
            layer.compile(backend=self.sizes.backend, mode=self.sizes.graphs)
        return {}

    # -- updates --

    def update(self) -> dict[str, Any]:
        """Gradients of diffu-GRPO's loss: completions are masked and scored whole."""
        sizes, update = self.sizes, diffu_grpo_batch(self._scoring_batch())

        def backward() -> None:
            self.denoiser.zero_grad(set_to_none=True)
            for loss in self.objective.losses([update]):
                loss.backward()

        rows, completion = sizes.update_rows, sizes.update_completion
        length = sizes.update_prompt + completion
        figures = self._timed(backward, rows * length, repeats=sizes.repeats)
        self.denoiser.zero_grad(set_to_none=True)
        work = Pass(
            forwards=rows,
            length=length,
            queries=completion,
            scored=rows * completion,
            separable=True,
        )
        # A forward, and gradients of what comes in: twice; gradients of the adapters are small beside them.
        flops = 2 * rows * forward_flops(self.size, length, completion, completion)
        return figures | self._rate(flops, figures) | self._planned(work)

    def d1_update(self, checkout: Path) -> dict[str, Any]:
        """d1's compute_loss on the same masked inputs."""
        sizes, peers = self.sizes, SimpleNamespace(d1=checkout)
        told = SimpleNamespace(mask_id=sizes.mask_id, prompt=sizes.update_prompt)
        loss = d1_loss(peers, PeerView(self.denoiser), self._scoring_batch(), told)

        def backward() -> None:
            self.denoiser.zero_grad(set_to_none=True)
            with self.world.autocast():
                value = loss()
            value.backward()

        length = sizes.update_prompt + sizes.update_completion
        figures = self._timed(backward, sizes.update_rows * length, repeats=sizes.repeats)
        self.denoiser.zero_grad(set_to_none=True)
        return figures

    # -- shared --

    def _scoring_batch(self) -> ScoringBatch:
        sizes = self.sizes
        tokens_NL = self._random(sizes.update_rows, sizes.update_prompt + sizes.update_completion)
        region_L = torch.arange(tokens_NL.shape[1], device=self.device) >= sizes.update_prompt
        scored_NL = region_L.expand_as(tokens_NL)
        row_R = torch.arange(sizes.update_rows, device=self.device)
        advantage_U = torch.linspace(-1, 1, sizes.update_rows, device=self.device)
        inputs_NL = tokens_NL.masked_fill(region_L, sizes.mask_id)
        return scoring_batch_of(inputs_NL, tokens_NL, scored_NL, advantage_U, forward_R=row_R, unit_R=row_R)

    def _random(self, rows: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(2, self.sizes.eos_id, (rows, width), generator=generator).to(self.device)

    def _prompts(self, rows: int) -> Prompts:
        tokens_NP = self._random(rows, self.sizes.prompt)
        row_N = torch.arange(rows, device=self.device)
        return Prompts(
            tokens_NP=tokens_NP, attention_NP=torch.ones_like(tokens_NP).bool(), prompt_N=row_N, sample_N=row_N * 0
        )

    def _timed(
        self, work: Callable[[], None], tokens: int, *, warm_up: Callable[[], None] | None = None, repeats: int = 1
    ) -> dict[str, Any]:
        """Wall seconds of a call after a warm-up, and the most memory above what was there before."""
        (warm_up or work)()
        self.denoiser.zero_grad(set_to_none=True)  # what a call makes is counted, as the plan counts it
        self.denoiser.workspace = Workspace()
        gc.collect()
        on_gpu = self.device.type == "cuda"
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / repeats
        figures: dict[str, Any] = {"seconds": round(seconds, 4), "tokens_per_s": round(tokens / seconds, 1)}
        if on_gpu:
            figures["peak_GiB"] = _gib(torch.cuda.max_memory_allocated() - before)
        return figures

    def _rate(self, flops: float, figures: dict[str, Any]) -> dict[str, Any]:
        rate = flops / figures["seconds"]
        share = {} if self.peak is None else {"utilisation": round(rate / self.peak, 3)}
        return {"TFLOP_per_s": float(f"{rate / 1e12:.4g}")} | share

    def _planned(self, work: Pass) -> dict[str, float]:
        return {"planned_GiB": _gib(peak_bytes(self.config.name, self.train, work))}


def _gib(size: int) -> float:
    return round(size / 2**30, 3)


@contextmanager
def _on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New tensors are made on the device, floating ones in the dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
